"""A teacher store answers as its teacher does, row by row, whatever the batches are; and it describes itself."""

from __future__ import annotations

import json
from dataclasses import replace

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, T5Config, T5ForConditionalGeneration

from distillkit.cache.dense import Dense
from distillkit.cache.sparse import TopK, TopKSampled
from distillkit.cache.store import Store, is_store
from distillkit.commands.stored_outputs import FOLDER
from distillkit.data.files import FileDataset
from distillkit.data.rows import Rows
from distillkit.errors import UserError
from distillkit.generation.teacher_store import TeacherStore, item_seeds
from distillkit.models.live import LiveModel
from distillkit.models.tokenizers import ByteLevelBPE
from distillkit.signals import SparseLogits, Wanted
from distillkit.tasks.causal_lm import CausalLM
from distillkit.tasks.masked_lm import MaskedLM
from distillkit.tasks.question_answering import QuestionAnswering
from distillkit.tasks.seq2seq_lm import Seq2SeqLM
from tests.stores import answered_rows, make_store
from tests.tiny import BAD, GOOD, LABELS, classifier, language_model, rows, tokenizer, write_jsonl

MASKING = ByteLevelBPE(vocab_size=320, mask=True).train(GOOD + BAD)
SIZES = {"vocab_size": 320, "pad_token_id": 1}


def masked_model() -> LiveModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return LiveModel(BertForMaskedLM(BertConfig(**SIZES, **sizes)), MASKING, MaskedLM(max_length=32))


def writer() -> LiveModel:
    torch.manual_seed(0)
    sizes = {"num_layers": 2, "num_decoder_layers": 2, "num_heads": 2, "d_kv": 8, "d_ff": 32, "d_model": 16}
    config = T5Config(**SIZES, **sizes, eos_token_id=0, decoder_start_token_id=1)
    return LiveModel(T5ForConditionalGeneration(config), tokenizer(), Seq2SeqLM(max_length=32, max_target_length=16))


@pytest.fixture
def texts(tmp_path) -> Rows:
    """Texts of several lengths, some longer than a row of the model."""
    lines = [{"text": row["text"] * (1 + index % 3)} for index, row in enumerate(rows(20))]
    return FileDataset(train=str(write_jsonl(tmp_path / "t.jsonl", lines)), columns={"text": "text"}).load()


@pytest.fixture
def labelled(tmp_path) -> Rows:
    return FileDataset(train=str(write_jsonl(tmp_path / "l.jsonl", rows(20))), labels=LABELS).load()


@pytest.fixture
def pairs(tmp_path) -> Rows:
    lines = [{"source": row["text"], "target": row["text"].upper()} for row in rows(20)]
    columns = {"source": "source", "target": "target"}
    return FileDataset(train=str(write_jsonl(tmp_path / "p.jsonl", lines)), columns=columns).load()


@torch.no_grad()
@pytest.mark.parametrize("kind", ["classes", "causal", "masked", "seq2seq"])
def test_a_store_of_whole_logits_answers_as_the_teacher_does(kind, tmp_path, request):
    made, fixture = {
        "classes": (classifier, "labelled"),
        "causal": (language_model, "texts"),
        "masked": (masked_model, "texts"),
        "seq2seq": (writer, "pairs"),
    }[kind]
    live, given = made(), request.getfixturevalue(fixture)
    teacher = make_store(tmp_path, live, given, codec=Dense())
    data = answered_rows(live, given, teacher)
    assert kind != "causal" or len(data) > 20  # texts were cut into pieces
    for indices in np.random.default_rng(0).permutation(len(data)).reshape(-1)[: len(data) // 4 * 4].reshape(-1, 4):
        batch = data.batch(indices, draw=(7, 1))
        said, own = batch.said.logits, live(batch).logits
        assert len(said) == len(batch.labels)
        torch.testing.assert_close(said.rows(0, len(said)), own.rows(0, len(own)), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_sparse_store_keeps_the_likeliest_tokens_and_the_rest(tmp_path, texts):
    live = language_model()
    teacher = make_store(tmp_path, live, texts, codec=TopK(k=8, mass=1.0))
    data = answered_rows(live, texts, teacher)
    batch = data.batch([3, 1, 2])
    own = live(batch).logits
    expected = SparseLogits.best(own.rows(0, len(own)), 8)
    said = batch.said.logits
    assert said.ids.tolist() == expected.ids.tolist()
    assert (said.log_probs - expected.log_probs).abs().max() < 0.02
    assert said.rest.exp() == pytest.approx(expected.rest.exp(), abs=1e-3)


def test_items_are_those_of_packed_rows_too(tmp_path, texts):

    live = language_model()
    teacher = make_store(tmp_path, live, texts, codec=Dense())
    data = replace(answered_rows(live, texts, teacher), packed=True)
    batch = data.batch([5, 0, 3, 2, 9])
    assert batch.segments is not None
    with torch.no_grad():
        own = live(batch).logits
    torch.testing.assert_close(batch.said.logits.values, own.rows(0, len(own)), rtol=1e-5, atol=1e-5)


def test_draws_depend_on_seed_row_and_place_alone(tmp_path, texts):
    live = language_model()
    kept = [
        make_store(tmp_path / name, live, texts, codec=TopKSampled(k=2, draws=4), **settings).stores[0]
        for name, settings in (
            ("one", {}),
            ("two", {"batch_size": 2, "shard_rows": 20}),
            ("three", {"seed": 1}),
        )
    ]
    one, two, three = (store.read(range(len(store)), ["drawn"])["drawn"] for store in kept)
    assert one == two
    assert sum(a != b for a, b in zip(one, three, strict=True)) > len(one) / 2


def test_seeds_are_all_different_and_those_of_a_row_stay_the_same():
    seeds = item_seeds(0, np.arange(100), [50] * 100)
    assert len(seeds.unique()) == 5000
    assert item_seeds(0, np.array([7, 3]), [2, 5]).tolist() == [*seeds[350:352].tolist(), *seeds[150:155].tolist()]
    assert not set(item_seeds(1, np.arange(100), [50] * 100).tolist()) & set(seeds.tolist())


@pytest.mark.parametrize(("kind", "tolerance"), [("float16", 1e-3), ("int8", 0.02)])
def test_features_come_back_as_far_as_their_numbers_reach(tmp_path, texts, kind, tolerance):
    live, names = language_model(), ["layers.0.hidden", "layers.1.query", "embeddings"]
    teacher = make_store(tmp_path, live, texts, features=names, feature_type=kind, logits=False)
    wanted = Wanted(logits=False, features=frozenset(names))
    data = answered_rows(live, texts, teacher, wanted)
    batch = data.batch([4, 0, 7])
    assert batch.said.logits is None
    with torch.no_grad():
        own = live(batch, wanted).features
    mask = batch.inputs["attention_mask"].bool()
    for name in names:
        found, expected = batch.said.features[name], own[name]
        assert found.shape == expected.shape
        tokens = mask if name != "layers.1.query" else mask.unsqueeze(1).expand(found.shape[:3])
        scale = expected[tokens].abs().max()
        assert (found[tokens] - expected[tokens]).abs().max() <= tolerance * scale


def test_pooled_features_are_one_vector_a_row(tmp_path, labelled):
    live = classifier()
    teacher = make_store(tmp_path, live, labelled, features=["layers.1.hidden"], pooling="mean")
    wanted = Wanted(logits=True, features=frozenset({"layers.1.hidden"}))
    batch = answered_rows(live, labelled, teacher, wanted).batch([2, 5])
    with torch.no_grad():
        hidden = live(batch, wanted).features["layers.1.hidden"]
    mask = batch.inputs["attention_mask"].unsqueeze(2)
    expected = (hidden * mask).sum(dim=1) / mask.sum(dim=1)
    found = batch.said.features["layers.1.hidden"]
    assert found.shape == hidden.shape  # the same for every token, so that losses pool what they pool of a live teacher
    torch.testing.assert_close(found, expected.unsqueeze(1).expand_as(found), rtol=2e-3, atol=1e-3)


def test_a_store_is_read_without_distillkit(tmp_path, texts):
    """With datasets, and with pyarrow and the description alone."""
    live = language_model()
    make_store(tmp_path, live, texts, codec=TopK(k=4, mass=1.0))
    folder = tmp_path / FOLDER
    about = json.loads((folder / "store.json").read_text())
    parts = [datasets.Dataset.from_file(str(folder / shard["file"])) for shard in about["shards"]]
    table = datasets.concatenate_datasets(parts)
    assert len(table) == about["encoded"]["rows"]
    assert sum(table["items"][:]) == about["items"]
    loaded = datasets.load_dataset("arrow", data_files=str(folder / "*.arrow"), split="train", cache_dir=str(tmp_path))
    assert loaded["row"][:] == table["row"][:]

    row = next(index for index, count in enumerate(table["items"][:]) if count > 2)
    width = (about["classes"] - 1).bit_length()
    bits = np.unpackbits(np.frombuffer(table[row]["ids"], np.uint8), bitorder="little")
    ids = bits[: 4 * width].reshape(4, width) @ (1 << np.arange(width))
    store = Store(str(folder), "teacher.path")
    decoded = store.codec.decode(store.read([row], store.codec_columns), about["classes"])
    assert ids.tolist() == decoded.ids[0].tolist()


def test_a_store_describes_itself(tmp_path, texts):
    live = language_model()
    make_store(tmp_path, live, texts, codec=TopK(k=4))
    about = json.loads((tmp_path / FOLDER / "store.json").read_text())
    assert (about["format"], about["version"]) == ("distillkit teacher store", 2)
    assert about["task"] == {"name": "causal_lm", "settings": about["task"]["settings"]}
    assert about["task"]["settings"]["max_length"] == 32
    assert about["encoded"]["longest"] <= 32
    assert about["codec"]["name"] == "top_k"
    assert about["size"]["bytes"] == sum(path.stat().st_size for path in (tmp_path / FOLDER).glob("*.arrow"))
    assert 0 < about["quality"]["kl"] < 10
    assert 0 < about["quality"]["covered_mass"] < 1
    assert 0 < about["quality"]["gradient_cosine"] <= 1


def test_the_same_teacher_and_rows_give_the_same_files(tmp_path, texts):
    for name in ("one", "two"):
        make_store(tmp_path / name, language_model(), texts)
    one, two = ({path.name: path.read_bytes() for path in (tmp_path / n / FOLDER).iterdir()} for n in ("one", "two"))
    different = [name for name in one | two if one.get(name) != two.get(name)]
    assert different == ["store.json"]  # which names the teacher's path
    assert len(one) > 6


def test_a_flipped_bit_is_found_when_the_shard_is_first_read_and_named(tmp_path, labelled):
    live = classifier()
    teacher = make_store(tmp_path, live, labelled)
    path = tmp_path / FOLDER / "part-000001.arrow"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    rows_ = answered_rows(live, labelled, teacher)
    rows_.batch([0, 1])
    with pytest.raises(UserError, match=r"part-000001\.arrow: the shard was damaged"):
        rows_.batch([0, 9])


@pytest.mark.parametrize("harm", ["cut", "gone", "version", "json", "unfinished", "folder", "other"])
def test_a_store_that_is_not_whole_is_refused_when_it_is_opened(tmp_path, labelled, harm):
    make_store(tmp_path, classifier(), labelled)
    folder = tmp_path / FOLDER
    description, shard = folder / "store.json", folder / "part-000002.arrow"
    if harm == "cut":
        shard.write_bytes(shard.read_bytes()[:-8])
    elif harm == "gone":
        shard.unlink()
    elif harm == "version":
        description.write_text(description.read_text().replace('"version": 2', '"version": 3'))
    elif harm == "json":
        description.write_text(description.read_text()[:100])
    elif harm == "unfinished":
        description.unlink()
        assert is_store(str(folder))
    elif harm == "folder":
        folder = tmp_path / "nothing"
    else:
        folder = tmp_path
    said = {
        "cut": "part-000002.arrow is not the file that was written",
        "gone": "part-000002.arrow is not the file that was written",
        "version": "of another format",
        "json": "store.json is damaged",
        "unfinished": "is a teacher store that is not finished",
        "folder": "no such teacher store",
        "other": "is no teacher store",
    }[harm]
    with pytest.raises(UserError, match=rf"^teacher\.path: .*{said}"):
        Store(str(folder), "teacher.path")


def test_settings_that_cannot_work_are_refused(labelled):
    for settings, key in (
        ({"feature_type": "int4"}, "feature_type"),
        ({"pooling": "max"}, "pooling"),
        ({"logits": False}, "generate"),
        ({"batch_size": 0}, "batch_size"),
        ({"sample": 0}, "sample"),
        ({"shard_rows": 0}, "shard_rows"),
    ):
        with pytest.raises(UserError, match=key):
            TeacherStore(**settings)
    with pytest.raises(
        UserError, match=r"^generate: the outputs of question_answering are as many as a row has tokens"
    ):
        TeacherStore().check(QuestionAnswering())
    with pytest.raises(UserError, match=r"has no module 'bert\.none'"):
        TeacherStore(features=["module:bert.none"]).prepare(classifier().eval(), labelled, classifier().task)


def test_an_empty_shard_is_a_shard(tmp_path):
    """Rows too short to learn from leave a shard without encoded rows."""
    lines = [{"text": "a" if index < 8 else "a fine day"} for index in range(12)]
    columns = {"text": "text"}
    given = FileDataset(train=str(write_jsonl(tmp_path / "t.jsonl", lines)), columns=columns).load()
    live = LiveModel(language_model().model, tokenizer(), CausalLM(max_length=32, min_length=4))
    teacher = make_store(tmp_path, live, given, shard_rows=4)
    assert [shard["rows"] for shard in teacher.stores[0].facts["shards"]] == [0, 0, 4]
    assert isinstance(teacher.stores[0].table(0), pa.Table)
    answered_rows(live, given, teacher).batch([3, 0])
