"""Encoding a split: what is checked, with its place, and that nothing is remembered from an earlier run."""

from __future__ import annotations

import pytest
from datasets import Dataset

from distillkit.data.checks import check_columns
from distillkit.data.encode import encode
from distillkit.data.files import FileDataset
from distillkit.data.labels import label_names
from distillkit.data.rows import Rows
from distillkit.errors import UserError
from distillkit.tasks.causal_lm import CausalLM
from distillkit.tasks.sequence_classification import SequenceClassification
from tests.tiny import LABELS, tokenizer, write_jsonl

TASK = SequenceClassification(max_length=16)
COLUMNS = {"text": "text", "label": "label", "teacher_logits": "teacher_logits"}


def rows(name: str = "nyu-mll/glue: sst2?", **columns) -> Rows:
    return Rows(name, {"train": Dataset.from_dict(columns)})


def test_a_label_that_is_not_declared_is_refused_with_file_and_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a", "label": "good"}\n\n\n{"text": "b", "label": null}\n{"text": "c", "label": "god"}\n')
    data = FileDataset(train=str(path), labels=LABELS).load()
    with pytest.raises(UserError, match=r"a\.jsonl:5: label 'god' is not among .* did you mean 'good'"):
        encode(data, "train", TASK, tokenizer(), LABELS)


def test_with_a_limit_too(tmp_path):
    lines = [{"text": str(row), "label": "bad" if row < 30 else "worse"} for row in range(60)]
    path = write_jsonl(tmp_path / "a.jsonl", lines)
    data = FileDataset(train=str(path), labels=LABELS, limit=20).load()
    first = next(text for text in data.splits["train"]["text"] if int(text) >= 30)
    with pytest.raises(UserError, match=rf"a\.jsonl:{int(first) + 1}: label 'worse'"):
        encode(data, "train", TASK, tokenizer(), LABELS)


@pytest.mark.parametrize(("value", "problem"), [(3, "int, not text"), (None, "missing"), (["a"], "list, not text")])
def test_a_text_that_is_none_is_refused_with_its_row(value, problem):
    data = rows(text=[value, value], label=["good", "bad"])
    with pytest.raises(UserError, match=f"train, row 1: text is {problem}"):
        encode(data, "train", TASK, tokenizer(), LABELS)


def test_teacher_logits_of_other_classes_are_refused(tmp_path):
    lines = [{"text": "a", "label": "good", "teacher_logits": scores} for scores in ([1.0, 2.0], [1.0, 2.0, 3.0])]
    data = FileDataset(train=str(write_jsonl(tmp_path / "a.jsonl", lines)), columns=COLUMNS).load()
    with pytest.raises(UserError, match=r"a\.jsonl:2: 3 teacher_logits for 2 classes"):
        encode(data, "train", TASK, tokenizer(), LABELS)


def test_missing_columns_are_refused():
    with pytest.raises(UserError, match=r"needs the columns .*text; .*dataset\.columns\.completion=NAME"):
        check_columns(rows(prompt=["a"]), CausalLM())
    with pytest.raises(UserError, match=r"dataset\.columns"):
        check_columns(rows(label=["a"]), TASK)


def test_a_split_that_is_not_there_or_empty():
    with pytest.raises(UserError, match="no validation split"):
        encode(rows(text=["a"]), "validation", TASK, tokenizer(), None)
    with pytest.raises(UserError, match="empty"):
        encode(rows(text=[]), "train", TASK, tokenizer(), None)


def test_nothing_left_to_learn_from():
    with pytest.raises(UserError, match="long enough"):
        encode(rows(text=["a", "b"]), "train", CausalLM(min_length=8), tokenizer(), None)


def test_the_same_rows_are_encoded_anew_for_another_task():
    """A cache that forgets the length, the tokenizer or the labels would give stale rows."""
    data = rows(text=["a fine and happy day " * 4], label=["good"])
    short = encode(data, "train", SequenceClassification(max_length=5), tokenizer(), LABELS)
    long = encode(data, "train", SequenceClassification(max_length=12), tokenizer(), LABELS[::-1])
    assert (short.lengths.tolist(), long.lengths.tolist()) == ([5], [12])
    assert (short.batch([0]).labels.tolist(), long.batch([0]).labels.tolist()) == ([1], [0])


def test_label_names_are_declared_or_sorted_numbers_first():
    assert label_names(Rows("x", {}, labels=["b", "a"])) == ["b", "a"]
    assert label_names(rows(label=["10", "9", "b", None, "a", "9"])) == ["9", "10", "a", "b"]
    with pytest.raises(UserError, match="no labels"):
        label_names(rows(label=[None]))
