"""Which rows a filter keeps."""

from __future__ import annotations

import pytest

from distillkit.data.files import FileDataset
from distillkit.errors import UserError
from tests.tiny import write_jsonl

ROWS = [
    {"text": "one", "label": 0, "language": "en", "stars": 1.5, "ok": True},
    {"text": "three", "label": 1, "language": "de", "stars": 3.0, "ok": False},
    {"text": "zwölf", "label": 2, "language": None, "stars": None, "ok": None},
]


def kept(tmp_path, wanted: dict, **arguments) -> list[str]:
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)
    return FileDataset(train=str(path), filter=wanted, **arguments).load().splits["train"]["text"][:]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({}, ["one", "three", "zwölf"]),
        ({"language": None}, ["one", "three", "zwölf"]),
        ({"language": "en"}, ["one"]),
        ({"language": ["en", "de"]}, ["one", "three"]),
        ({"language": {"not": "en"}}, ["three", "zwölf"]),
        ({"label": [0, "2"]}, ["one", "zwölf"]),
        ({"ok": True}, ["one"]),
        ({"stars": {"min": 2}}, ["three"]),
        ({"stars": {"min": 1, "max": 2.5}, "text": {"min_chars": 3}}, ["one"]),
        ({"text": {"min_chars": 5, "max_chars": 5}}, ["three", "zwölf"]),
        ({"stars": 3}, ["three"]),
    ],
)
def test_conditions(tmp_path, wanted, expected):
    assert kept(tmp_path, wanted) == expected


def test_csv_has_numbers_as_text(tmp_path):
    (tmp_path / "a.csv").write_text("text,stars\na,1\nb,30\nc,\n")
    rows = FileDataset(train=str(tmp_path / "a.csv"), filter={"stars": {"min": 5}}).load()
    assert rows.splits["train"]["text"][:] == ["b"]
    assert rows.notes == ("train: the filter keeps 1 of 3 rows",)
    assert rows.where("train", 0).endswith("a.csv, row 2")
    assert FileDataset(train=str(tmp_path / "a.csv"), filter={"stars": 1}).load().splits["train"]["text"][:] == ["a"]


def test_class_ids_are_filtered_by_their_names(tmp_path):
    assert kept(tmp_path, {"label": "1"}) == ["three"]


@pytest.mark.parametrize(
    ("wanted", "problem"),
    [
        ({"lang": "en"}, r"dataset\.filter\.lang: no column 'lang' in .*a\.jsonl; its columns are: text, label"),
        ({"text": {"min": 3}}, r"dataset\.filter\.text: 'min: 3' does not suit values like 'one'"),
        ({"stars": "many"}, r"dataset\.filter\.stars: 'is: many' does not suit values like 1\.5"),
        ({"language": "fr"}, "no row of the train split passes"),
        ({"text": {"minimum": 3}}, r"dataset\.filter\.text: unknown condition 'minimum'"),
        ({"text": {"min_chars": "long"}}, r"dataset\.filter\.text\.min_chars: must be a number"),
        ({"text": [["a"]]}, "must be a value or a list of values"),
    ],
)
def test_filters_that_cannot_work_are_refused(tmp_path, wanted, problem):
    with pytest.raises(UserError, match=problem):
        kept(tmp_path, wanted)
