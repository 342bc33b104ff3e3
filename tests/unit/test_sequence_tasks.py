"""Classes, several labels and scores of texts: what is cut, what counts, and which losses fit."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional
from transformers import BertConfig

from distillkit.commands.parts import check_fit
from distillkit.data.files import FileDataset
from distillkit.errors import UserError
from distillkit.generation.soft_labels import SoftLabels
from distillkit.losses.base import LogitLoss
from distillkit.losses.divergences import ForwardKL
from distillkit.losses.logits import LogitMSE, RankingLogistic
from distillkit.losses.objective import Objective
from distillkit.losses.task import BinaryCrossEntropy, CrossEntropy, Regression
from distillkit.models.teachers import FrozenModel, recorded_signal
from distillkit.signals import IGNORE
from distillkit.tasks import regression
from distillkit.tasks.multi_label import MultiLabelClassification
from distillkit.tasks.sequence_classification import SequenceClassification
from tests.encoders import collate, encoder, padded, rows_of, value, word_piece
from tests.tiny import write_jsonl

WORDS = ["a", "fine", "day", "so", "very", "good", "sad", "again"]
TOKENIZER = word_piece(WORDS)
TEXTS = ["a fine day", "so very good again", "sad"]
PAIRS = ["so good", "sad", "a day"]
NAMES = ["bad", "good", "old"]
Scores = regression.Regression


def words_of(ids: list[int]) -> str:
    return " ".join(TOKENIZER.convert_ids_to_tokens(ids))


@pytest.mark.parametrize(
    ("side", "text", "pair"),
    [
        ("right", "[CLS] so very good [SEP]", "[CLS] so very [SEP] sad [SEP]"),
        ("left", "[CLS] very good again [SEP]", "[CLS] good again [SEP] sad [SEP]"),
    ],
)
def test_long_rows_are_cut_on_the_chosen_side_and_counted(side, text, pair):
    for length, pairs, expected in ((5, None, text), (6, PAIRS, pair)):
        task = SequenceClassification(max_length=length, truncation=side)
        columns = {"text": TEXTS} | ({"text_pair": pairs} if pairs else {})
        encoded = task.encode(columns, TOKENIZER, None)
        assert words_of(encoded["input_ids"][1]) == expected
        whole = TOKENIZER(TEXTS, pairs)["input_ids"]
        assert encoded["truncated"] == [len(ids) > length for ids in whole]
        assert max(map(len, encoded["input_ids"])) <= length
    assert TOKENIZER.truncation_side == "right"


def test_rows_that_fit_are_as_the_tokenizer_makes_them():
    encoded = SequenceClassification().encode({"text": TEXTS, "text_pair": PAIRS}, TOKENIZER, None)
    whole = TOKENIZER(TEXTS, PAIRS)
    assert encoded["input_ids"] == whole["input_ids"]
    assert encoded["token_type_ids"] == whole["token_type_ids"]
    assert encoded["truncated"] == [False] * 3


def multi_label(**columns):
    return collate(MultiLabelClassification(), TOKENIZER, NAMES, text=TEXTS, **columns)


def test_several_labels_of_a_row():
    batch = multi_label(labels=[["good", "old"], None, []])
    assert batch.labels[0].tolist() == [0, 1, 1]
    assert batch.labels[1].isnan().all()
    assert batch.labels[2].tolist() == [0, 0, 0]
    objective = Objective({"hard": {"weight": 1.0, "loss": BinaryCrossEntropy()}})
    assert objective.counts(batch).tolist() == [2]
    live = encoder(MultiLabelClassification(), TOKENIZER, NAMES)
    with torch.no_grad():
        logits = live(batch).logits.values
        total = objective(live(batch), None, batch, objective.counts(batch))[0]
        answers = live.task.answer(live, batch)
    known = torch.tensor([0, 2])
    expected = functional.binary_cross_entropy_with_logits(logits[known], batch.labels[known])
    assert total.item() == pytest.approx(expected.item(), rel=1e-6)
    metrics = live.task.metrics(answers)
    assert metrics["loss"] == pytest.approx(expected.item(), rel=1e-6)
    assert list(metrics) == ["micro_f1", "macro_f1", "accuracy", "loss"]
    assert answers["prediction"] == (logits.sigmoid() > 0.5).int().tolist()
    assert live.task.decide(torch.tensor([[1.0, -1.0, 0.1]]), NAMES) == [["bad", "old"]]


def test_scores_of_rows():
    batch = collate(Scores(), TOKENIZER, text=TEXTS, score=[2.5, None, 1])
    assert batch.labels[:, 0].tolist() == [2.5, pytest.approx(math.nan, nan_ok=True), 1.0]
    live = encoder(Scores(metrics=["mse", "pearson"]), TOKENIZER)
    objective = Objective({"hard": {"weight": 1.0, "loss": Regression()}, "kd": {"weight": 1.0, "loss": LogitMSE()}})
    teacher = FrozenModel(encoder(Scores(), TOKENIZER, seed=1))
    with torch.no_grad():
        ours, theirs = live(batch).logits.values, teacher(batch).logits.values
        answers = live.task.answer(live, batch)
    assert ours.shape == (3, 1)
    squares = ((ours - batch.labels)[[0, 2]] ** 2).mean()
    total = value(objective, live, teacher, batch)
    assert total == pytest.approx((squares + ((ours - theirs) ** 2).mean()).item(), rel=1e-6)
    metrics = live.task.metrics(answers)
    assert metrics["mse"] == pytest.approx(squares.item(), rel=1e-5)
    assert list(metrics) == ["mse", "pearson", "loss"]
    assert live.task.best_metric == "mse"
    assert live.task.decide(ours, []) == ours[:, 0].tolist()


LABELS = {
    SequenceClassification: {"label": ["good", None, "bad"]},
    MultiLabelClassification: {"labels": [["good"], None, []]},
    Scores: {"score": [0.5, None, 2.0]},
}
HARD = {SequenceClassification: CrossEntropy, MultiLabelClassification: BinaryCrossEntropy, Scores: Regression}


@pytest.mark.parametrize("kind", LABELS)
def test_padding_changes_no_loss(kind):
    names = None if kind is Scores else NAMES
    task = kind()
    batch = collate(task, TOKENIZER, names, text=TEXTS, text_pair=PAIRS, **LABELS[kind])
    student = encoder(task, TOKENIZER, names, layers=1)
    teacher = FrozenModel(encoder(task, TOKENIZER, names, seed=1))
    soft = ForwardKL(2.0) if kind is SequenceClassification else LogitMSE()
    objective = Objective({"hard": {"weight": 0.5, "loss": HARD[kind]()}, "kd": {"weight": 0.5, "loss": soft}})
    assert objective.counts(batch).tolist() == [2, 3]
    narrow = value(objective, student, teacher, batch)
    assert narrow > 0
    assert value(objective, student, teacher, padded(batch, 64)) == pytest.approx(narrow, abs=1e-6)


@pytest.mark.parametrize("kind", LABELS)
def test_recorded_logits_teach_and_must_fit(kind):
    names = None if kind is Scores else NAMES
    right, wrong = ([1.0], [1.0, 2.0]) if kind is Scores else ([1.0, 2.0, 3.0], [1.0, 2.0])
    batch = collate(kind(), TOKENIZER, names, text=TEXTS, teacher_logits=[None, right, right])
    assert batch.taught.tolist() == [False, True, True]
    assert recorded_signal(batch).logits.values.tolist() == [[0.0] * len(right), right, right]
    ids = None if names is None else {name: index for index, name in enumerate(names)}
    columns = kind().encode({"text": TEXTS, "teacher_logits": [None, wrong, right]}, TOKENIZER, ids)
    assert columns["bad"] == [(1, f"{len(wrong)} teacher_logits for {len(right)} outputs")]


@pytest.mark.parametrize("kind", LABELS)
def test_rows_without_any_label_cannot_be_judged(kind):
    names = None if kind is Scores else NAMES
    live = encoder(kind(), TOKENIZER, names)
    batch = collate(live.task, TOKENIZER, names, text=TEXTS)
    with torch.no_grad(), pytest.raises(UserError, match=rf"dataset\.columns\.{live.task.label_column}: no row"):
        live.task.metrics(live.task.answer(live, batch))


@pytest.mark.parametrize(
    ("kind", "loss", "problem"),
    [
        (Scores, CrossEntropy(), "CrossEntropy compares classes, and models for regression give scores; use loss=regr"),
        (Scores, ForwardKL(), "ForwardKL compares classes"),
        (Scores, LogitMSE(centred=True), "LogitMSE compares classes"),
        (Scores, BinaryCrossEntropy(), "compares labels"),
        (MultiLabelClassification, CrossEntropy(), "use loss=multi_label or loss=multi_label_kd"),
        (SequenceClassification, Regression(), "compares scores, .* give classes; use loss=hard or loss=kd"),
        (Scores, LogitMSE(), None),
        (MultiLabelClassification, LogitMSE(), None),
        (MultiLabelClassification, RankingLogistic(), None),
        (SequenceClassification, LogitMSE(), None),
    ],
)
def test_a_loss_on_other_outputs_is_refused(kind, loss: LogitLoss, problem: str | None):
    objective = Objective({"one": {"weight": 1.0, "loss": loss}})
    if problem is None:
        check_fit(objective, kind())
        return
    with pytest.raises(UserError, match=rf"loss\.terms\.one: .*{problem}"):
        check_fit(objective, kind())


def answers_of(task: SequenceClassification) -> dict:
    logits = [[0.0, 1.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]]
    columns = {"text": [*TEXTS, "so"], "label": ["good", "bad", "good", None], "teacher_logits": logits}
    return task.answer(recorded_signal, collate(task, TOKENIZER, ["bad", "good"], **columns))


def test_f1_is_about_the_chosen_class():
    found = {}
    for positive in (None, "bad", "good"):
        task = SequenceClassification(metrics=["accuracy", "f1", "recall"], positive=positive)
        answers = answers_of(task)
        assert set(task.metric_columns) <= set(answers)
        found[positive] = task.metrics(answers)
    assert found[None] == found["good"]
    assert found["good"]["recall"] == 0.5
    assert found["bad"]["recall"] == 0.0
    with pytest.raises(UserError, match=r"task\.positive: there is no class 'god'; did you mean 'good'"):
        SequenceClassification(metrics=["f1"], positive="god").encode(
            {"text": TEXTS, "label": [None] * 3}, TOKENIZER, {"bad": 0, "good": 1}
        )


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: SequenceClassification(max_length=2), "max_length"),
        (lambda: SequenceClassification(truncation="middle"), "truncation"),
        (lambda: SequenceClassification(metrics=["mathews"]), "metrics"),
        (lambda: SequenceClassification(metrics=[]), "metrics"),
        (lambda: SequenceClassification(metrics=["f1", "f1"]), "metrics"),
        (lambda: MultiLabelClassification(metrics=["matthews"]), "metrics"),
        (lambda: MultiLabelClassification(threshold=1.0), "threshold"),
        (lambda: Scores(metrics=["accuracy"]), "metrics"),
    ],
)
def test_settings_that_cannot_work_are_refused(make, key):
    with pytest.raises(UserError, match=rf"task\.{key}"):
        make()


def test_a_model_gets_the_outputs_of_its_task():
    config = BertConfig(num_labels=7)
    Scores().prepare(config, None, trained=False, key="student")
    assert (config.num_labels, config.problem_type) == (1, "regression")
    MultiLabelClassification().prepare(config, NAMES, trained=False, key="student")
    assert (config.num_labels, config.problem_type) == (3, "multi_label_classification")
    assert config.id2label == dict(enumerate(NAMES))
    with pytest.raises(UserError, match=r"teacher\.path: the model has 3 outputs, not one score"):
        Scores().prepare(config, None, trained=True, key="teacher.path")
    with pytest.raises(UserError, match=r"trained for multi_label_classification, not single_label"):
        SequenceClassification().prepare(config, NAMES, trained=True, key="teacher.path")
    assert SequenceClassification().labels([{"label": IGNORE}]).tolist() == [IGNORE]


def test_soft_labels_belong_to_their_rows_where_others_are_skipped(tmp_path):
    lines = [{"text": text, "score": 1.0} for text in (TEXTS[0], " ", TEXTS[1], TEXTS[2])]
    settings = {"on_bad_row": "skip", "cache": False}
    data = FileDataset(train=str(write_jsonl(tmp_path / "a.jsonl", lines)), **settings)
    live = encoder(Scores(), TOKENIZER)
    asked = SoftLabels().prepare(live, data.load(), Scores())
    found = asked.answer(0, 3) + asked.answer(3, 4)
    assert [row["text"] for row in found] == TEXTS
    with torch.no_grad():
        for row in found:
            (score,) = live(collate(Scores(), TOKENIZER, text=[row["text"]])).logits.values[0].tolist()
            assert row["teacher_logits"] == [pytest.approx(score, abs=1e-5)]
    filled = SoftLabels(labels="replace").prepare(live, data.load(), Scores()).answer(0, 1)
    assert filled[0]["score"] == filled[0]["teacher_logits"][0]


def test_encoded_rows_have_one_entry_each():
    for kind, labels in LABELS.items():
        names = {} if kind is Scores else {name: index for index, name in enumerate(NAMES)}
        assert len(rows_of(kind().encode({"text": TEXTS, **labels}, TOKENIZER, names))) == 3
