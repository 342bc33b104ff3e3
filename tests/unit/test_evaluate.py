"""Quality against scikit-learn, and independence of the batch size."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from sklearn import metrics as sklearn_metrics
from torch.nn import functional

from distillkit.data.encode import Encoded, encode
from distillkit.data.files import FileDataset
from distillkit.evaluation import evaluate as evaluation
from distillkit.evaluation.evaluate import evaluate
from distillkit.signals import IGNORE, Batch, DenseLogits, Signal
from distillkit.tasks.base import Answers
from distillkit.tasks.sequence_classification import SequenceClassification
from tests.tiny import accelerator, classifier, encoded, language_model, rows, tokenizer, write_jsonl

CLASSES = ["a", "b", "c", "d"]


@pytest.fixture
def three_of_four(tmp_path) -> Encoded:
    """Rows of three of the four classes, every seventh without a label."""
    lines = [
        {"text": row["text"], "label": None if index % 7 == 6 else CLASSES[index % 3]}
        for index, row in enumerate(rows(45))
    ]
    data = FileDataset(train=str(write_jsonl(tmp_path / "a.jsonl", lines)), labels=CLASSES).load()
    return encode(data, "train", SequenceClassification(), tokenizer(), CLASSES)


class Guess:
    """A model that answers by the length of a row, never with the last class."""

    def __call__(self, batch: Batch) -> Signal:
        length = batch.inputs["attention_mask"].sum(dim=1)
        return Signal(DenseLogits(functional.one_hot(length % 3, 4) * 3.0))


def known(data: Encoded, answers: Answers) -> tuple[np.ndarray, np.ndarray]:
    labels = np.array(data.rows["label"][:])
    assert answers["label"] == labels.tolist()
    return labels[labels != IGNORE], np.array(answers["prediction"])[labels != IGNORE]


def test_accuracy_and_macro_f1_are_those_of_scikit_learn(three_of_four):
    outcome = evaluate(Guess(), SequenceClassification(), three_of_four, 8, accelerator())
    assert len(outcome.answers["prediction"]) == 45
    labels, predictions = known(three_of_four, outcome.answers)
    assert len(labels) == 39
    assert outcome.metrics["accuracy"] == pytest.approx(sklearn_metrics.accuracy_score(labels, predictions))
    expected = sklearn_metrics.f1_score(labels, predictions, average="macro")
    assert outcome.metrics["macro_f1"] == pytest.approx(expected)
    logits = np.eye(4)[predictions] * 3.0
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    loss = sklearn_metrics.log_loss(labels, probabilities, labels=[0, 1, 2, 3])
    assert outcome.metrics["loss"] == pytest.approx(loss, rel=1e-6)


def test_a_class_that_is_predicted_but_never_true_counts_as_zero_f1(three_of_four):
    class Last:
        def __call__(self, batch: Batch) -> Signal:
            logits = functional.one_hot(torch.full((len(batch.labels),), 3), 4).float()
            logits[0] = torch.tensor([9.0, 0, 0, 0])
            return Signal(DenseLogits(logits))

    outcome = evaluate(Last(), SequenceClassification(), three_of_four, 8, accelerator())
    labels, predictions = known(three_of_four, outcome.answers)
    expected = sklearn_metrics.f1_score(labels, predictions, average="macro", zero_division=0)
    assert outcome.metrics["macro_f1"] == pytest.approx(expected)


def test_perplexity_does_not_depend_on_the_batch_size(tmp_path):
    live = language_model().eval()
    data = encoded(tmp_path, live.task)
    found = [evaluate(live, live.task, data, size, accelerator()).metrics for size in (1, 7, 64)]
    for metrics in found[1:]:
        assert metrics == pytest.approx(found[0], rel=1e-6)
    total, items = 0.0, 0
    for row in data.rows["input_ids"]:
        ids = torch.tensor([row])
        with torch.no_grad():
            logits = live.model(input_ids=ids).logits[0, :-1].double()
        total += functional.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
        items += len(row) - 1
    assert found[0]["loss"] == pytest.approx(total / items, rel=1e-6)
    assert found[0]["perplexity"] == pytest.approx(np.exp(total / items), rel=1e-6)


def test_only_what_the_metrics_need_is_exchanged(three_of_four):
    task = SequenceClassification()
    lean = evaluate(Guess(), task, three_of_four, 8, accelerator(), keep_answers=False)
    assert set(lean.answers) == {"label", "prediction", "loss"}
    assert lean.metrics == evaluate(Guess(), task, three_of_four, 8, accelerator()).metrics


def test_answers_of_all_processes_come_in_the_order_of_the_rows(three_of_four, monkeypatch):
    """Three shares, one of them empty: as if three processes had looked at ten batches or fewer."""
    task = SequenceClassification()
    whole = evaluate(Guess(), task, three_of_four, 30, accelerator())
    shares: list = [([], {})]

    class Alone:
        num_processes, device = 3, torch.device("cpu")

        def __init__(self, rank):
            self.process_index = rank

    monkeypatch.setattr(evaluation, "gather_object", lambda share: shares.extend(share) or shares)
    for rank in (1, 0):
        outcome = evaluate(Guess(), task, three_of_four, 30, Alone(rank), keep_answers=False)
    assert outcome.metrics == whole.metrics
    assert outcome.answers["label"] == whole.answers["label"]
    assert outcome.answers["prediction"] == whole.answers["prediction"]


@pytest.mark.parametrize("kind", ["classifier", "language model"])
def test_mixed_precision_changes_little(tmp_path, kind):
    live = (language_model() if kind == "language model" else classifier()).eval()
    data = encoded(tmp_path, live.task)
    exact = evaluate(live, live.task, data, 8, accelerator()).metrics
    AcceleratorState._reset_state()
    try:
        rough = evaluate(live, live.task, data, 8, Accelerator(cpu=True, mixed_precision="bf16")).metrics
        live.model.bfloat16()
        half = evaluate(live, live.task, data, 8, Accelerator(cpu=True, mixed_precision="bf16")).metrics
    finally:
        AcceleratorState._reset_state()
    assert rough["loss"] == pytest.approx(exact["loss"], rel=0.01)
    assert half["loss"] == pytest.approx(exact["loss"], rel=0.02)


def test_every_row_is_scored_once(tmp_path):
    data = encoded(tmp_path, SequenceClassification(), count=37)
    seen: list[int] = []

    def collate(batch: list[dict]) -> Batch:
        seen.extend(len(row["input_ids"]) for row in batch)
        return data.collate(batch)

    numbered = replace(data, collate=collate)
    live = classifier().eval()
    evaluate(live, live.task, numbered, 5, accelerator())
    assert sorted(seen) == sorted(data.lengths.tolist())
