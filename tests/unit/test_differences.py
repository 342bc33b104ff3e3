"""The examples on which a model and its teacher disagree most, and classes counted by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, f1_score

from distillkit.data.encode import encode
from distillkit.data.files import FileDataset
from distillkit.evaluation.classes import count_classes
from distillkit.evaluation.differences import LONGEST, disagreement, most_different, shortened
from distillkit.evaluation.evaluate import evaluate
from distillkit.evaluation.examples import Examples
from distillkit.tasks.causal_lm import CausalLM
from distillkit.tasks.sequence_classification import SequenceClassification
from tests.tiny import LABELS, accelerator, classifier, language_model, rows, tokenizer, write_jsonl


def classified(*probabilities: tuple[float, float]) -> dict[str, list]:
    rows_ = [np.array(p, dtype=np.float32) for p in probabilities]
    return {
        "label": [0, 1, 1],
        "prediction": [int(p.argmax()) for p in rows_],
        "probabilities": rows_,
        "loss": [0.1, 0.2, 0.3],
    }


@pytest.fixture
def examples(tmp_path):
    lines = [{"text": text, "label": label} for text, label in zip("abc", ["bad", "good", "good"], strict=True)]
    data = FileDataset(train=str(write_jsonl(tmp_path / "a.jsonl", lines)), labels=LABELS).load()
    encoded = encode(data, "train", SequenceClassification(), tokenizer(), LABELS)
    return Examples(data.split("train"), encoded, tokenizer(), LABELS, {"prediction": [0, 0, 0]})


def test_those_furthest_apart_come_first(examples):
    teacher = classified((0.9, 0.1), (0.2, 0.8), (0.4, 0.6))
    model = classified((0.8, 0.2), (0.9, 0.1), (0.4, 0.6))
    examples.answers = teacher
    found = most_different(model, teacher, examples, 10)
    assert [(example["row"], example["difference"]) for example in found] == [
        (1, pytest.approx(0.7, abs=1e-6)),
        (0, pytest.approx(0.1, abs=1e-6)),
    ]
    first = found[0]
    assert (first["inputs"], first["label"]) == ({"text": "b"}, "good")
    assert first["teacher"]["prediction"] == "good"
    assert first["model"]["prediction"] == "bad"
    assert first["teacher"]["confidence"] == pytest.approx(0.8)
    assert first["model"]["confidence"] == pytest.approx(0.9)
    assert len(most_different(model, teacher, examples, 1)) == 1
    assert json.dumps(found)


def test_what_is_apart_depends_on_the_answers():
    losses = [{"loss": [3.0, 8.0], "items": [1, 4], "prediction": [0, 0]} for _ in range(2)]
    losses[1]["loss"] = [3.5, 4.0]
    assert disagreement(*losses, by_loss=True)[1].tolist() == [0.5, 1.0]
    scores = {"prediction": [1.0, 2.0]}, {"prediction": [1.25, 0.0]}
    assert disagreement(*scores)[1].tolist() == [0.25, 2.0]
    texts = {"prediction": ["a", "b"]}, {"prediction": ["a", "c"]}
    assert disagreement(*texts)[1].tolist() == [0.0, 1.0]
    tags = {"prediction": [["O", "O"], ["O"]]}, {"prediction": [["O", "B-x"], []]}
    assert disagreement(*tags)[1].tolist() == [0.5, 1.0]


def test_a_language_models_examples_are_the_pieces_it_read(tmp_path):
    long = " ".join(row["text"] for row in rows(12))
    lines = [{"text": long}, {"text": "so very good"}]
    data = FileDataset(train=str(write_jsonl(tmp_path / "a.jsonl", lines)), columns={"text": "text"}).load()
    one, other = (language_model(seed=seed).eval() for seed in (0, 1))
    encoded = encode(data, "train", CausalLM(max_length=32), one.tokenizer, None)
    assert len(encoded) > 3
    first, second = (evaluate(m, m.task, encoded, 4, accelerator()).answers for m in (one, other))
    examples = Examples(data.split("train"), encoded, one.tokenizer, None, first)
    found = most_different(second, first, examples, 50)
    assert len(found) == len(encoded)
    last = next(example for example in found if example["row"] == len(encoded) - 1)
    assert last["inputs"] == {"text": "so very good"}
    assert last["label"] is None
    assert "prediction" not in last["model"]
    per_item = np.array(second["loss"]) / np.array(second["items"])
    assert last["model"]["loss"] == pytest.approx(per_item[-1])
    apart = [example["difference"] for example in found]
    assert apart == sorted(apart, reverse=True)


def test_classes_of_rows_that_have_several_are_named():
    answers = {"labels": [[1.0, 0.0, 1.0], [np.nan] * 3], "prediction": [[1, 1, 0], [0, 0, 0]]}
    examples = Examples.__new__(Examples)
    examples.classes, examples.several, examples.pieces, examples.answers = ["a", "b", "c"], True, False, answers
    assert examples.named(answers["prediction"][0]) == ["a", "b"]
    assert examples.label(0) == ["a", "c"]
    assert examples.label(1) == []


def test_long_texts_are_cut_for_showing():
    example = {"inputs": {"text": "x" * 2000}, "label": None, "difference": 0.5}
    assert len(shortened(example)["inputs"]["text"]) == LONGEST + 2
    assert shortened(example)["difference"] == 0.5


def test_class_counts_are_those_of_scikit_learn():
    random = np.random.default_rng(0)
    labels, predictions = random.integers(4, size=200), random.integers(4, size=200)
    labels[:20] = -100
    answers = {"label": labels.tolist(), "prediction": predictions.tolist()}
    found = count_classes(answers, list("abcd"))
    known = labels >= 0
    assert (found.confusion == confusion_matrix(labels[known], predictions[known])).all()
    assert found.f1 == pytest.approx(f1_score(labels[known], predictions[known], average=None).tolist())
    several = {"labels": [[1.0, 0.0], [1.0, 1.0], [np.nan, np.nan]], "prediction": [[1, 1], [0, 1], [1, 1]]}
    assert count_classes(several, list("ab")).f1 == pytest.approx([2 / 3, 2 / 3])
    tags = {"tags": [["O", "B-x"], None, ["O"]], "prediction": [["O", "O"], ["O"], ["O"]]}
    found = count_classes(tags, ["B-x", "O"])
    assert found.confusion.tolist() == [[0, 1], [0, 2]]
    assert count_classes({"label": ["a"], "prediction": ["b"]}, ["a", "b"]) is None
    assert count_classes({"prediction": [0]}, ["a"]) is None


def test_a_class_that_never_occurs_has_no_f1():
    assert count_classes({"label": [0, 0], "prediction": [0, 0]}, ["a", "b"]).f1 == [1.0, None]


def test_a_classifier_end_to_end(tmp_path, examples):
    one, other = classifier().eval(), classifier(seed=1).eval()
    first, second = (evaluate(m, m.task, examples.encoded, 4, accelerator()).answers for m in (one, other))
    found = most_different(second, first, Examples(examples.rows, examples.encoded, one.tokenizer, LABELS, first), 3)
    assert {example["inputs"]["text"] for example in found} == {"a", "b", "c"}
