"""New inputs: words replaced by fitting ones, texts made up, and the teacher's own logits for them."""

from __future__ import annotations

import json
import re

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

from distillkit.commands import generate_pseudo
from distillkit.data.files import FileDataset
from distillkit.errors import UserError
from distillkit.generation.backends.base import Answer, Prompt, Sampling
from distillkit.generation.backends.local import Transformers
from distillkit.generation.inputs import NewInputs
from distillkit.generation.sampled_inputs import SampledInputs
from distillkit.generation.substitution import Substitution
from distillkit.models.live import LiveModel
from distillkit.models.tokenizers import ByteLevelBPE
from distillkit.tasks.causal_lm import CausalLM
from distillkit.tasks.masked_lm import MaskedLM
from distillkit.tasks.sequence_classification import SequenceClassification
from tests.pseudo import config, read
from tests.recipes.conftest import word_piece
from tests.tiny import BAD, GOOD, LABELS, classifier, language_model, save, write_jsonl

TEXTS = ["A fine, happy day!", "what a pain to see this again 42", "so very bad", "Great"]
TOKENIZERS = {"pieces": word_piece(), "bytes": ByteLevelBPE(vocab_size=320, mask=True).train(GOOD + BAD)}


def masked_model(kind: str) -> LiveModel:
    torch.manual_seed(0)
    sizes = {"vocab_size": 320, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
    tokens = TOKENIZERS[kind]
    made = BertForMaskedLM(BertConfig(num_hidden_layers=1, pad_token_id=tokens.pad_token_id, **sizes))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(5)
    return LiveModel(made, tokens, MaskedLM(max_length=32)).eval()


@pytest.fixture
def source(tmp_path) -> FileDataset:
    rows = [{"text": text, "label": LABELS[index % 2]} for index, text in enumerate(TEXTS)]
    return FileDataset(train=str(write_jsonl(tmp_path / "texts.jsonl", rows)), labels=LABELS)


def ask(generator: NewInputs, teacher: LiveModel, source: FileDataset, parts=((0, None),)) -> list[dict]:
    rows = source.load()
    generator.check(teacher.task)
    asked = generator.prepare(teacher.eval(), rows, teacher.task)
    total = generator.total(rows)
    return [row for start, stop in parts for row in asked.answer(start, total if stop is None else stop)]


def split(text: str) -> list[str]:
    return re.findall(r"\w+|\W+", text)


@torch.no_grad()
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_words_are_replaced_by_the_likeliest_in_their_places(kind, tmp_path, source):
    model = masked_model(kind)
    path = str(save(model, tmp_path / "masked"))
    found = ask(NewInputs(Substitution(path, variants=5, probability=0.5, candidates=3)), classifier(), source)
    replaced = 0
    for row in found:
        before, after = split(TEXTS[row["source_row"]]), split(row["text"])
        assert len(before) == len(after)
        for place, (own, new) in enumerate(zip(before, after, strict=True)):
            if own == new:
                continue
            replaced += 1
            assert own.isalpha()
            text = "".join([*before[:place], "[HERE]", *before[place + 1 :]])
            left, right = text.split("[HERE]")
            ids = model.tokenizer(left.rstrip() if kind == "bytes" else left)["input_ids"]
            assert new.lower() != own.lower()
            assert new in likely(model, left, own, right, 3), (ids, own, new)
    assert replaced > 10
    assert any(row["text"][0].isupper() for row in found if row["source_row"] == 0)


def likely(model: LiveModel, left: str, own: str, right: str, count: int) -> set[str]:
    """The best whole words where `own` stands, by reading the model's vocabulary one by one."""
    tokens = model.tokenizer
    encoded = tokens(left + own + right, return_offsets_mapping=True)
    inside = [
        index
        for index, (start, stop) in enumerate(encoded["offset_mapping"])
        if stop > len(left) and start < len(left) + len(own)
    ]
    ids = encoded["input_ids"]
    masked = torch.tensor([[*ids[: inside[0]], tokens.mask_token_id, *ids[inside[-1] + 1 :]]])
    order = model.model(input_ids=masked).logits[0, inside[0]].argsort(descending=True).tolist()
    words: list[str] = []
    for token in order:
        word = tokens.decode([token]).strip()
        alone = tokens(f"a {word}", add_special_tokens=False)["input_ids"]
        if word.isalpha() and len(alone) == 2 and alone[1] == token and token not in tokens.all_special_ids:
            words.append(word)
    kept = [word for word in words if word.lower() != own.lower()][:count]
    return {word.capitalize() if own[0].isupper() and word.islower() else word for word in kept}


def test_what_a_row_becomes_depends_on_the_row_alone(tmp_path, source):
    path = str(save(masked_model("pieces"), tmp_path / "masked"))
    whole = ask(NewInputs(Substitution(path)), classifier(), source)
    parts = ask(NewInputs(Substitution(path)), classifier(), source, ((0, 1), (1, 3), (3, None)))
    assert [row["text"] for row in parts] == [row["text"] for row in whole]
    other = ask(NewInputs(Substitution(path), seed=1), classifier(), source)
    assert [row["text"] for row in other] != [row["text"] for row in whole]
    variants = [[row["text"] for row in whole if row["source_row"] == index] for index in range(4)]
    assert all(len(set(several)) == len(several) <= 4 for several in variants)
    assert all(TEXTS[index] not in several for index, several in enumerate(variants))


@torch.no_grad()
def test_the_teacher_labels_what_was_made(tmp_path, source):
    path, teacher = str(save(masked_model("pieces"), tmp_path / "masked")), classifier().eval()
    found = ask(NewInputs(Substitution(path), hard_labels=True), teacher, source)
    for row in found:
        logits = teacher.model(**teacher.tokenizer([row["text"]], return_tensors="pt")).logits[0]
        assert row["teacher_logits"] == pytest.approx(logits.tolist(), abs=1e-5)
        assert row["label"] == LABELS[int(logits.argmax())]
    without = ask(NewInputs(Substitution(path)), teacher, source)
    assert all(row.get("label") is None for row in without)


def test_both_texts_of_a_pair_are_changed(tmp_path):
    rows = [{"text": "a fine and happy day", "text_pair": "so very good again", "label": "good"}]
    rows.append({"text": "great work", "text_pair": None, "label": "good"})
    columns = {name: name for name in ("text", "text_pair", "label")}
    file = write_jsonl(tmp_path / "p.jsonl", rows)
    refusing = FileDataset(train=str(file), columns=columns, labels=LABELS)
    source = FileDataset(train=str(file), columns=columns, labels=LABELS, on_bad_row="skip")
    path = str(save(masked_model("pieces"), tmp_path / "masked"))
    found = ask(NewInputs(Substitution(path, probability=0.9)), classifier(), source)
    assert any(row["text"] != rows[0]["text"] and row["text_pair"] != rows[0]["text_pair"] for row in found)
    assert {row["source_row"] for row in found} == {0}
    with pytest.raises(UserError, match=r"p\.jsonl:2: text_pair is missing"):
        ask(NewInputs(Substitution(path)), classifier(), refusing)


class Told:
    """A backend that answers with what it was asked."""

    def __init__(self, chats: bool, says: list[Answer]) -> None:
        self.asks, self.chats, self.says, self.tokenizer = "a model", chats, says, None
        self.prompts: list[Prompt] = []

    def open(self, teacher, task) -> Told:
        return self

    def answer(self, prompts: list[Prompt], sampling: Sampling) -> list[list[Answer]]:
        self.prompts += prompts
        self.sampling = sampling
        return [[self.says[prompt.draw[1] % len(self.says)]] for prompt in prompts]


@pytest.mark.parametrize("chats", [True, False])
def test_texts_are_made_up_by_the_example_of_rows(source, chats):
    says = [Answer(" a new one\nand more", "stop"), Answer("cut", "length"), Answer(" ", "stop"), Answer("b", "stop")]
    backend = Told(chats, says)
    found = ask(NewInputs(SampledInputs(backend, count=8, shots=2)), classifier(), source)
    assert [row["text"] for row in found] == ["a new one", "b"] * 2
    assert all(len(row["teacher_logits"]) == 2 for row in found)
    shown = {text for prompt in backend.prompts for text in TEXTS if text in prompt.text}
    assert shown == set(TEXTS)
    assert backend.sampling.stop == (() if chats else ("\n",))
    if not chats:
        assert all(prompt.text.count("\n") == 2 and prompt.text.endswith("\n") for prompt in backend.prompts)
    again = Told(chats, says)
    ask(NewInputs(SampledInputs(again, count=8, shots=2)), classifier(), source, ((0, 5), (5, None)))
    assert again.prompts == backend.prompts


def test_a_language_model_begins_from_nothing(tmp_path, source):
    path = str(save(language_model(), tmp_path / "writer"))
    maker = SampledInputs(Transformers(4, path), count=6, shots=0, max_new_tokens=200)
    rows = source.load()
    made = maker.open(rows.split("train"), frozenset(), 0, classifier()).make(range(6))
    assert all(row["text"] for row in made)


def test_a_run_writes_rows_that_train_reads(tmp_path):
    save(classifier(), tmp_path / "teacher")
    save(masked_model("pieces"), tmp_path / "masked")
    maker = {"_target_": "distillkit.generation.substitution.Substitution", "masked_lm": str(tmp_path / "masked")}
    maker |= {"variants": 1}
    generate = {
        "_target_": "distillkit.generation.inputs.NewInputs",
        "maker": maker | {"variants": 1},
        "shard_rows": 16,
    }
    report = generate_pseudo.main(config(tmp_path, "out", generate=generate))
    assert report["rows"] == len(read(tmp_path / "out/pseudo")) > 0
    assert json.loads((tmp_path / "out/pseudo/_pseudo.json").read_text())["labels"] == LABELS
    columns = {name: name for name in ("text", "teacher_logits")}
    rows = FileDataset(train=str(tmp_path / "out/pseudo/*.parquet"), columns=columns).load().split("train")
    assert len(rows) == report["rows"]


def test_settings_that_cannot_work_are_refused(tmp_path, source):
    with pytest.raises(UserError, match=r"^probability"):
        Substitution("m", probability=0.0)
    with pytest.raises(UserError, match=r"^backend: needs a language model of its own"):
        SampledInputs(Transformers())
    with pytest.raises(UserError, match=r"^shots"):
        SampledInputs(Told(True, []), shots=0)
    with pytest.raises(UserError, match=r"^generate: causal_lm has no soft labels"):
        NewInputs(SampledInputs(Told(False, []))).check(CausalLM())
    NewInputs(SampledInputs(Told(False, []))).check(SequenceClassification())
    with pytest.raises(UserError, match=r"^generate\.maker\.masked_lm: no such model folder"):
        ask(NewInputs(Substitution(str(tmp_path / "nothing"))), classifier(), source)
