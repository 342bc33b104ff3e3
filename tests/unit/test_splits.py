"""Rows chosen by hash: a validation split, fractions; and by number."""

from __future__ import annotations

import random

import pytest

from distillkit.data.files import FileDataset
from distillkit.data.rows import Rows
from distillkit.errors import UserError
from tests.tiny import write_jsonl


def load(tmp_path, lines: list[dict], **arguments) -> Rows:
    return FileDataset(train=str(write_jsonl(tmp_path / "a.jsonl", lines)), **arguments).load()


def texts(rows: Rows, split: str = "train") -> list[str]:
    return rows.splits[split]["text"][:]


LINES = [{"text": f"text {row // 2}", "label": row % 2} for row in range(1000)]  # every text twice


def test_validation_rows_are_chosen_by_their_text(tmp_path):
    rows = load(tmp_path, LINES, validation_share=0.1)
    train, validation = texts(rows), texts(rows, "validation")
    assert list(rows.splits) == ["train", "validation"]
    assert len(train) + len(validation) == 1000
    assert 60 < len(validation) < 140
    assert not set(train) & set(validation)
    assert rows.notes == (f"validation: {len(validation)} of 1,000 training rows, by their hash",)
    assert rows.where("validation", 0).endswith(f":{LINES.index({'text': validation[0], 'label': 0}) + 1}")


def test_neither_order_nor_other_rows_matter(tmp_path):
    expected = set(texts(load(tmp_path, LINES, validation_share=0.1), "validation"))
    mixed = random.Random(0).sample(LINES, 500)
    again = load(tmp_path, mixed, validation_share=0.1)
    assert set(texts(again, "validation")) == expected & {line["text"] for line in mixed}


def test_case_and_punctuation_do_not_part_equal_texts(tmp_path):
    lines = [{"text": form} for row in range(50) for form in (f"Text, no. {row}!", f"text no {row}")]
    validation = texts(load(tmp_path, lines, validation_share=0.3), "validation")
    assert len(validation) % 2 == 0


def test_questions_about_one_context_stay_together(tmp_path):
    lines = [{"context": f"c{row // 5}", "question": f"q{row}"} for row in range(500)]
    rows = load(tmp_path, lines, validation_share=0.2)
    assert not set(rows.splits["train"]["context"]) & set(rows.splits["validation"]["context"])


def test_a_validation_split_that_is_there_is_kept(tmp_path):
    path = str(write_jsonl(tmp_path / "v.jsonl", [{"text": "v"}]))
    assert texts(load(tmp_path, LINES, validation=path, validation_share=0.1), "validation") == ["v"]


def test_a_split_that_would_be_empty_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"dataset\.validation_share: (all|none) of the 1 training rows"):
        load(tmp_path, [{"text": "a"}], validation_share=0.5)
    with pytest.raises(UserError, match="no text to split them by"):
        load(tmp_path, [{"label": "a"}, {"label": "b"}], validation_share=0.5)


def test_a_fraction_is_stable_under_reordering_and_nested(tmp_path):
    lines = [{"text": f"t{row}"} for row in range(1000)]
    tenth, third = (set(texts(load(tmp_path, lines, fraction=share))) for share in (0.1, 0.33))
    assert 70 < len(tenth) < 130
    assert tenth < third
    assert set(texts(load(tmp_path, lines[::-1], fraction=0.1))) == tenth
    assert set(texts(load(tmp_path, lines[:500], fraction=0.1))) == {t for t in tenth if int(t[1:]) < 500}


def test_fractions_and_limits_by_split(tmp_path):
    path = str(write_jsonl(tmp_path / "v.jsonl", [{"text": f"v{row}"} for row in range(100)]))
    rows = load(tmp_path, LINES, validation=path, fraction={"train": 0.5}, limit={"validation": 10})
    assert 400 < len(rows.splits["train"]) < 600
    assert len(rows.splits["validation"]) == 10


@pytest.mark.parametrize(
    ("arguments", "where"),
    [
        ({"fraction": 0.0}, r"dataset\.fraction: must be above 0"),
        ({"fraction": {"train": 2.0}}, r"dataset\.fraction\.train: must be above 0 and at most 1"),
        ({"fraction": {"trian": 0.5}}, r"dataset\.fraction: unknown split 'trian'; did you mean 'train'"),
        ({"limit": {"test": 0}}, r"dataset\.limit\.test: 0 rows are none"),
        ({"validation_share": 1.0}, r"dataset\.validation_share: must be between 0 and 1"),
    ],
)
def test_amounts_that_leave_nothing_are_refused(arguments, where):
    with pytest.raises(UserError, match=where):
        FileDataset(train="a.jsonl", **arguments)
