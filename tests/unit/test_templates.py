"""Columns that are written from other columns of the row."""

from __future__ import annotations

import pytest

from distillkit.data.files import FileDataset
from distillkit.data.templates import fields, fill
from distillkit.errors import UserError
from tests.tiny import write_jsonl

ROWS = [
    {"instruction": "Add.", "input": "1 2", "output": 3, "source": "web"},
    {"instruction": "Greet.", "input": "", "output": 5, "source": None},
]


def load(tmp_path, template: dict, **arguments):
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)
    return FileDataset(train=str(path), template=template, **arguments).load()


def test_fields_are_columns_of_the_file(tmp_path):
    rows = load(tmp_path, {"prompt": "{instruction} {{{input}}}", "completion": "= {output:.1f}"})
    train = rows.splits["train"]
    assert train["prompt"][:] == ["Add. {1 2}", "Greet. {}"]
    assert train["completion"][:] == ["= 3.0", "= 5.0"]
    assert train["instruction"][:] == ["Add.", "Greet."]


def test_of_several_the_first_whose_fields_have_values(tmp_path):
    train = load(tmp_path, {"prompt": ["{instruction}\n{input}", "{instruction}"]}).splits["train"]
    assert train["prompt"][:] == ["Add.\n1 2", "Greet."]


def test_messages(tmp_path):
    turns = [
        {"role": "user", "content": ["{instruction} {input}", "{instruction}"]},
        {"role": "assistant", "content": "{output}"},
    ]
    train = load(tmp_path, {"messages": turns}).splits["train"]
    assert train["messages"][1] == [{"role": "user", "content": "Greet."}, {"role": "assistant", "content": "5"}]


def test_our_names_serve_where_the_file_has_none(tmp_path):
    columns = {"question": "instruction"}
    assert load(tmp_path, {"text": "Q: {question}"}, columns=columns).splits["train"]["text"][0] == "Q: Add."


def test_a_template_alone_makes_the_rows(tmp_path):
    rows = load(tmp_path, {"text": "{output}"}, columns={"prompt": "prompt"})
    assert rows.splits["train"].to_dict() == {"text": ["3", "5"]}


def test_a_missing_field_is_a_bad_row(tmp_path):
    with pytest.raises(UserError, match=r"a\.jsonl:2: source is missing, which the template of text needs; .*skip"):
        load(tmp_path, {"text": "{source}"})
    rows = load(tmp_path, {"text": "{source}"}, on_bad_row="skip")
    assert rows.splits["train"]["text"][:] == ["web"]
    assert "train: 1 of 2 rows skipped: " in rows.notes[0]
    assert rows.where("train", 0).endswith("a.jsonl:1")


def test_a_filter_comes_first(tmp_path):
    assert load(tmp_path, {"text": "{source}"}, filter={"source": "web"}).splits["train"]["text"][:] == ["web"]


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ({"prmpt": "{a}"}, r"dataset\.template\.prmpt: unknown column 'prmpt'; did you mean 'prompt'"),
        ({"prompt": "no field"}, r"dataset\.template\.prompt: no \{field\}"),
        ({"prompt": "{a"}, r"dataset\.template\.prompt: '\{a' is no template"),
        ({"prompt": "{}"}, "is no field"),
        ({"prompt": "{a.__class__}"}, "is no field"),
        ({"prompt": "{a[0]}"}, "is no field"),
        ({"prompt": "{a:{b}}"}, "is no field"),
        ({"prompt": 3}, "a template is text"),
        ({"prompt": []}, "a template is text"),
        ({"text": "{a}"}, r"dataset\.columns\.text says another thing"),
    ],
)
def test_templates_that_cannot_work_are_refused_at_once(template, problem):
    with pytest.raises(UserError, match=problem):
        FileDataset(train="a.jsonl", template=template, columns={"text": "review"})


def test_an_unknown_field_names_the_columns(tmp_path):
    with pytest.raises(
        UserError, match=r"dataset\.template\.text: no column 'sauce' in .*a\.jsonl; its columns are: ins"
    ):
        load(tmp_path, {"text": "{sauce}"})


def test_a_format_that_does_not_fit_is_a_bad_row(tmp_path):
    with pytest.raises(
        UserError, match=r"a\.jsonl:1: the template of text cannot be filled .*; 1 more of 2 rows are bad"
    ):
        load(tmp_path, {"text": "{instruction:d}"})


def test_fill_and_fields():
    assert fields({"a": ["{x}", "{y}"], "b": [{"c": "{z}"}]}, "key") == {"x", "y", "z"}
    assert fill(["{x}", "{y}!"], {"x": None, "y": 0}) == "0!"
