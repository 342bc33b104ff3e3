"""What is hidden, that nothing but (seed, step, row) decides it, and that padding changes nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import BertConfig, BertForMaskedLM, ModernBertConfig, ModernBertForMaskedLM

from distillkit.data.encode import Encoded, encode
from distillkit.data.files import FileDataset
from distillkit.errors import UserError
from distillkit.evaluation.evaluate import evaluate
from distillkit.losses.hidden import HiddenMSE
from distillkit.losses.objective import Objective
from distillkit.losses.task import CrossEntropy
from distillkit.models.anatomy import shape_of
from distillkit.models.live import LiveModel
from distillkit.models.students import copy_layers
from distillkit.models.teachers import FrozenModel
from distillkit.models.tokenizers import ByteLevelBPE
from distillkit.signals import Batch, HeadLogits, Wanted
from distillkit.tasks.masked_lm import NO_WORD, MaskedLM
from distillkit.training.loop import fit
from tests.recipes.conftest import word_piece
from tests.tiny import BAD, GOOD, accelerator, data_files, distillation, events, tokenizer, training

TOKENIZER = ByteLevelBPE(vocab_size=320, mask=True).train(GOOD + BAD)
MASK = TOKENIZER.mask_token_id
TEXTS = ["a fine and happy day", "so very", "what a pain to see this again and again"]


def masked_model(layers: int = 2, seed: int = 0, kind: str = "bert") -> LiveModel:
    torch.manual_seed(seed)
    sizes = {"vocab_size": 320, "hidden_size": 16, "num_attention_heads": 2, "pad_token_id": 1}
    if kind == "bert":
        config = BertConfig(num_hidden_layers=layers, intermediate_size=32, hidden_dropout_prob=0.0, **sizes)
        config.attention_probs_dropout_prob = 0.0
        model = BertForMaskedLM(config)
    else:
        special = {"bos_token_id": 0, "eos_token_id": 0, "cls_token_id": 0, "sep_token_id": 0}
        model = ModernBertForMaskedLM(
            ModernBertConfig(num_hidden_layers=layers, intermediate_size=32, **sizes, **special)
        )
    return LiveModel(model, TOKENIZER, MaskedLM(max_length=32))


@pytest.fixture
def data(tmp_path) -> Encoded:
    loaded = FileDataset(**data_files(tmp_path / "data", 40), columns={"text": "text"}).load()
    return encode(loaded, "train", MaskedLM(max_length=32), TOKENIZER, None)


def collate(task: MaskedLM, texts: list[str], draw: tuple[int, ...] = (7, 3), tokens=TOKENIZER) -> Batch:
    columns = task.encode({"text": texts}, tokens, None)
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return task.collate([row | {"draw": (*draw, index)} for index, row in enumerate(rows)], tokens)


def test_the_items_are_the_hidden_tokens_and_nothing_else_is_changed():
    batch = collate(MaskedLM(), TEXTS)
    whole = [TOKENIZER(text)["input_ids"] for text in TEXTS]
    for row, ids in enumerate(whole):
        shown = batch.inputs["input_ids"][row]
        places = batch.counted[row].nonzero().flatten().tolist()
        assert len(places) == max(1, round(0.15 * len(ids)))
        assert max(places) < len(ids) == int(batch.inputs["attention_mask"][row].sum())
        assert all(shown[i] == ids[i] for i in range(len(ids)) if i not in places)
    assert batch.labels.tolist() == [whole[row][i] for row, i in batch.counted.nonzero().tolist()]
    assert batch.taught.all()


def test_eighty_ten_ten():
    batch = collate(MaskedLM(max_length=400, mask_share=0.5), ["a fine and happy day " * 200] * 20)
    shown, labels = batch.inputs["input_ids"][batch.counted], batch.labels
    assert len(labels) > 3000
    assert (shown == MASK).double().mean() == pytest.approx(0.8, abs=0.03)
    assert (shown == labels).double().mean() == pytest.approx(0.1, abs=0.02)
    others = shown[(shown != MASK) & (shown != labels)]
    assert len(set(others.tolist())) > 150
    assert not set(others.tolist()) & set(TOKENIZER.all_special_ids)


def test_what_is_hidden_depends_on_seed_step_and_row_alone(data):
    def hidden(rows: list[int], *draw: int) -> dict[int, list[int]]:
        batch = data.batch(rows, draw)
        return {row: batch.inputs["input_ids"][i].tolist() for i, row in enumerate(rows)}

    def trimmed(ids: list[int]) -> list[int]:
        return [token for token in ids if token != TOKENIZER.pad_token_id]

    together, apart = hidden([4, 9, 2], 1, 5), hidden([9], 1, 5) | hidden([2, 4], 1, 5)
    assert {row: trimmed(ids) for row, ids in together.items()} == {row: trimmed(ids) for row, ids in apart.items()}
    assert hidden([4, 9, 2], 1, 6) != together != hidden([4, 9, 2], 2, 5)
    assert hidden([4, 9, 2]) == hidden([4, 9, 2])


def test_whole_words_are_hidden_as_a_whole():
    text = "what a joy to see this again and again, so very good and lovely work " * 3
    words = np.array(MaskedLM().encode({"text": [text]}, TOKENIZER, None)["words"][0])
    assert len(words) > len(set(words.tolist()))  # some have several tokens
    counts = set()
    for step in range(30):
        chosen = collate(MaskedLM(whole_words=True), [text], (0, step)).counted[0].numpy()
        hidden = set(words[chosen].tolist())
        assert all(chosen[words == word].all() for word in hidden)
        counts.add(int(chosen.sum()))
    assert max(counts) == round(0.15 * len(words))
    assert min(counts) > 0.5 * max(counts)


def test_a_text_of_one_long_word_hides_it():
    batch = collate(MaskedLM(whole_words=True), ["terriblelovelyterrible"])
    assert batch.counted.all()


def test_special_tokens_are_never_chosen_and_long_texts_are_cut():
    tokens = word_piece()
    task = MaskedLM(max_length=6, min_length=2)
    columns = task.encode({"text": ["a fine and happy day", "so", "a sad and grey day"]}, tokens, None)
    assert columns["row"] == [0, 2]  # the rest of a text has one token, as has the short one
    assert [tokens.decode(ids) for ids in columns["input_ids"]] == [
        "[CLS] a fine and happy [SEP]",
        "[CLS] a sad and grey [SEP]",
    ]
    assert [words[0] for words in columns["words"]] == [words[-1] for words in columns["words"]] == [NO_WORD] * 2
    for step in range(20):
        batch = collate(task, ["a fine and happy day"], (0, step), tokens)
        assert not batch.counted[:, [0, -1]].any()
        assert "token_type_ids" in batch.inputs


@pytest.mark.parametrize("kind", ["bert", "modernbert"])
def test_logits_and_scores_are_the_models_own_whatever_the_padding(kind):
    live = masked_model(kind=kind).eval()
    batch = collate(live.task, TEXTS)
    with torch.no_grad():
        signal = live(batch)
        own = live.model(**batch.inputs).logits[batch.counted]
        answers = live.task.answer(live, batch)
    assert isinstance(signal.logits, HeadLogits)
    torch.testing.assert_close(signal.logits.rows(0, len(batch.labels)), own, rtol=1e-5, atol=1e-6)
    nll = functional.cross_entropy(own.double(), batch.labels)
    metrics = live.task.metrics(answers)
    assert metrics["loss"] == pytest.approx(nll.item(), rel=1e-6)
    assert metrics["perplexity"] == pytest.approx(nll.exp().item(), rel=1e-6)
    assert metrics["accuracy"] == pytest.approx((own.argmax(-1) == batch.labels).double().mean().item())
    alone = [collate(live.task, [text], (7, 3)) for text in TEXTS[:1]]
    with torch.no_grad():
        torch.testing.assert_close(live(alone[0]).logits.rows(0, 9), own[: len(alone[0].labels)], rtol=1e-4, atol=1e-5)


def test_evaluation_does_not_depend_on_the_batch_size(data):
    live = masked_model().eval()
    found = [evaluate(live, live.task, data, size, accelerator()).metrics for size in (1, 7, 64)]
    assert found[1] == pytest.approx(found[0], rel=1e-6)
    assert found[2] == pytest.approx(found[0], rel=1e-6)


def test_micro_batches_and_resuming_change_nothing(data, tmp_path):
    """Dynamic masks and all."""

    def go(name: str, resume: bool = False, **settings) -> tuple[list, dict]:
        student = masked_model(1)
        common = {"max_steps": 8, "evaluate_every": 4, "checkpoint_every": 4, "keep_best": False}
        run = training(tmp_path / name, student, masked_model(2, seed=7), data, **common | settings)
        if resume:
            run.resume_from = tmp_path / name / "checkpoints/step-000004"
            run.records.rewind(4)
        fit(run)
        return events(tmp_path / name), student.model.state_dict()

    lines, weights = go("whole")
    assert len({line["loss"] for line in lines if line["event"] == "train"}) == 8
    again, resumed = go("whole", resume=True)
    assert again == lines
    assert all(torch.equal(weights[name], resumed[name]) for name in weights)
    small, _ = go("small", micro_batch_size=3)
    assert [line["items"] for line in small if "items" in line] == [line["items"] for line in lines if "items" in line]
    assert [line["loss"] for line in small] == pytest.approx([line["loss"] for line in lines], rel=1e-4)


def test_features_are_compared_and_layers_copied(data):
    teacher = masked_model(3, seed=1)
    student = LiveModel(copy_layers(teacher.model, [0, 2]), TOKENIZER, teacher.task)
    objective = Objective(
        {"hard": {"weight": 1.0, "loss": CrossEntropy()}, "hidden": {"weight": 1.0, "loss": HiddenMSE()}}
    )
    objective.bind(shape_of(student.model.config), shape_of(teacher.model.config))
    frozen = FrozenModel(teacher, objective.wanted_of_teacher)
    batch = data.batch([0, 1, 2])
    counts = objective.counts(batch)
    assert counts[0] == batch.counted.sum()
    assert counts[1] == batch.inputs["attention_mask"].sum()
    share, _ = objective(student(batch, objective.wanted_of_student), frozen(batch), batch, counts)
    share.backward()
    assert student.model.bert.embeddings.word_embeddings.weight.grad.abs().sum() > 0
    assert student(batch, Wanted(True)).logits.classes == 320


def test_distillation_learns(data, tmp_path):
    run = training(tmp_path, masked_model(1), masked_model(2, seed=7), data, max_steps=30, evaluate_every=30)
    run.objective = distillation(alpha=1.0)
    fit(run)
    losses = [line["loss"] for line in events(tmp_path) if line["event"] == "train"]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


def test_a_tokenizer_without_a_mask_token_is_refused():
    with pytest.raises(UserError, match=r"no mask token; use that of .* student\.tokenizer\.mask=true"):
        MaskedLM().encode({"text": TEXTS}, tokenizer(), None)


@pytest.mark.parametrize("bad", [{"max_length": 1}, {"mask_share": 0.0}, {"mask_share": 1.0}, {"min_length": 0}])
def test_settings_that_cannot_work_are_refused(bad):
    with pytest.raises(UserError, match=r"task\."):
        MaskedLM(**bad)


def test_a_length_without_room_is_refused():
    with pytest.raises(UserError, match=r"task\.max_length: 3 tokens leave no room for a text"):
        MaskedLM(max_length=3).encode({"text": TEXTS}, word_piece(), None)
