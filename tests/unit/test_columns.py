"""Our columns: mapped from any names and parts, brought to one type, and what is wrong in them."""

from __future__ import annotations

import datasets
import numpy as np
import pandas
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from distillkit.data.columns import COLUMNS, chosen_columns, find_columns, part, problems
from distillkit.data.files import FileDataset
from distillkit.data.labels import name_classes
from distillkit.data.rows import Rows
from distillkit.errors import UserError
from tests.tiny import write_jsonl

ANSWERS = {"text": ["b"], "answer_start": [2]}


def load(tmp_path, lines: list[dict], **arguments) -> Rows:
    return FileDataset(train=str(write_jsonl(tmp_path / "a.jsonl", lines)), **arguments).load()


def test_every_column_comes_through_under_its_own_name(tmp_path):
    row = {
        "id": "7",
        "text": "a",
        "label": "x",
        "labels": ["x", "y"],
        "score": 0.5,
        "tokens": ["a", "2020-01-01"],
        "tags": ["O", "B"],
        "answers": ANSWERS,
        "references": ["r", "s"],
        "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}],
        "image": "a.png",
        "finished": True,
        "teacher_logits": [0.5, 1.0],
    }
    rows = load(tmp_path, [row, row | {"text": "b"}])
    assert rows.splits["train"][0] == row
    assert set(row) < set(COLUMNS)


def test_of_several_names_the_first_that_is_there(tmp_path):
    columns = {"text": ["sentence", "review"], "label": ["label", "stars"]}
    assert load(tmp_path, [{"review": "a", "stars": 3}], columns=columns).splits["train"][0] == {
        "text": "a",
        "label": "3",
    }
    with pytest.raises(UserError, match=r"dataset\.columns\.text: no column 'sentence' or 'review' in .*a\.jsonl"):
        load(tmp_path, [{"text": "a"}], columns=columns)


def test_parts_of_objects_and_lists(tmp_path):
    lines = [{"translation": {"en": "a", "de": "b"}, "many": ["x", "y"]}, {"translation": {"en": "c"}, "many": []}]
    columns = {"source": "translation.en", "target": "translation.de", "text": "many.0"}
    rows = load(tmp_path, lines, columns=columns).splits["train"]
    assert rows.to_dict() == {"source": ["a", "c"], "target": ["b", None], "text": ["x", None]}
    table = pa.table({"a.b": ["x"], "c": [{"d": 1}]})
    assert part(table, "a.b") is not None
    assert part(table, "c.e") is None
    assert part(table, "c.0") is None


def test_a_column_may_serve_twice(tmp_path):
    rows = load(tmp_path, [{"q": "a"}], columns={"text": "q", "question": "q"})
    assert rows.splits["train"][0] == {"text": "a", "question": "a"}


def test_unknown_columns_are_refused():
    with pytest.raises(UserError, match="unknown column 'lable'; did you mean 'label'"):
        chosen_columns({"lable": "x"})
    assert chosen_columns({"text": None, "label": "x"}) == {"label": ["x"]}
    assert find_columns(pa.schema([("a", pa.string())]), {"text": ["text"]}, "here") == {}


def test_types_do_not_depend_on_the_format(tmp_path):
    (tmp_path / "a.csv").write_text("id,score,text\n1,0.5,x\n2,,y\n")
    rows = FileDataset(train=str(tmp_path / "a.csv")).load().splits["train"]
    assert rows.to_dict() == {"id": ["1", "2"], "score": [0.5, None], "text": ["x", "y"]}
    table = pandas.DataFrame({"id": [1, 2], "text": ["x", "y"], "label": pandas.Categorical(["p", "q"])})
    table.to_parquet(tmp_path / "a.parquet")
    rows = FileDataset(train=str(tmp_path / "a.parquet")).load().splits["train"]
    assert rows.to_dict() == {"id": ["1", "2"], "text": ["x", "y"], "label": ["p", "q"]}
    assert load(tmp_path, [{"w": ["a", "b"]}], columns={"text": "w"}).splits["train"]["text"][:] == ["a b"]


def bad(name: str, values: list, required: bool = True) -> list[tuple[list[int], str]]:
    found = problems(name, pa.chunked_array([pa.array(values)]), required)
    indices = [(np.flatnonzero(pc.fill_null(p.rows, False).to_numpy()).tolist(), p.reason) for p in found]
    return [(rows, reason) for rows, reason in indices if rows]


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("text", ["a", None, " \n", ""], [([1], "text is missing"), ([2, 3], "text is empty")]),
        ("input", ["", "a"], []),
        ("text", [3, None], [([1], "text is missing"), ([0], "text is int, not text")]),
        ("tokens", [["a"], [], ["b", None]], [([1], "tokens is empty"), ([2], "tokens holds null")]),
        ("tokens", ["a b"], [([0], "tokens is str, not a list of texts")]),
        ("score", ["high"], [([0], "score is str, not a number")]),
        ("teacher_logits", [[1, 2.5]], []),
        ("teacher_logits", [["a"]], [([0], "teacher_logits is list, not a list of numbers")]),
        ("answers", [ANSWERS, {"text": [], "answer_start": []}], []),
        ("answers", [{"text": ["a", "b"], "answer_start": [1]}], [([0], "answers has not as many texts as starts")]),
        ("answers", ["b"], [([0], "answers is str, not {text: […], answer_start: […]}")]),
        ("messages", [[{"role": "user", "content": "a"}], []], [([1], "messages is empty")]),
        ("messages", [["hi"]], [([0], "messages is list, not a list of {role: …, content: …}")]),
        ("finished", ["no"], [([0], "finished is str, not true or false")]),
    ],
)
def test_problems_are_found_in_every_kind(name, values, expected):
    assert bad(name, values) == expected


def test_what_nobody_needs_may_be_missing_or_empty_but_not_of_another_kind():
    assert bad("text", ["", None], required=False) == []
    assert bad("text", [1], required=False) == [([0], "text is int, not text")]


def test_classes_of_lists_become_names():
    names = datasets.ClassLabel(names=["O", "B"])
    table = pa.table({"tags": [[0, 1], None, [], [1, -1]], "labels": [["x", ""], [], None, ["y"]]})
    features = datasets.Features(tags=datasets.List(names), labels=datasets.List(datasets.Value("string")))
    named, declared = name_classes(table.slice(1), features)
    assert declared == ["O", "B"]
    assert named.to_pydict() == {"tags": [None, [], ["B", None]], "labels": [[], None, ["y"]]}
    named, _ = name_classes(table, features)
    assert named["tags"].to_pylist() == [["O", "B"], None, [], ["B", None]]
    assert named["labels"].to_pylist()[0] == ["x", None]
    assert name_classes(pa.table({"labels": [[1, 2]]}), features)[0]["labels"].to_pylist() == [["1", "2"]]
    with pytest.raises(UserError, match=r"dataset\.columns\.tags"):
        name_classes(pa.table({"tags": ["O O"]}), features)
