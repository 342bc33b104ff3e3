"""Local files and hub datasets: what is read, and what is refused with its place."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pandas
import pytest

from distillkit.data import hub
from distillkit.data.checks import check_columns
from distillkit.data.files import FileDataset
from distillkit.data.hub import HubDataset
from distillkit.data.rows import Rows
from distillkit.errors import UserError
from distillkit.tasks.sequence_classification import SequenceClassification
from tests.tiny import write_jsonl


def write(path: Path, content: str | bytes) -> str:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def load(*files: str, **arguments) -> Rows:
    return FileDataset(train=list(files), **arguments).load()


def values(rows: Rows, column: str = "text", split: str = "train") -> list:
    return rows.splits[split][column][:]


TEXT = {"text": "text"}


def test_jsonl(tmp_path):
    path = write(tmp_path / "a.jsonl", '\ufeff{"text": "one", "label": 1}\n\n{"label": null, "text": "zwei ü"}\r\n')
    rows = load(path)
    assert values(rows) == ["one", "zwei ü"]
    assert values(rows, "label") == ["1", None]
    assert rows.where("train", 1) == f"{path}:3"
    assert rows.name == tmp_path.name


def test_texts_that_look_like_dates_stay_text(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "2020-01-01"}, {"text": "2021-01-01T10:00:00"}])
    assert values(load(str(path), columns=TEXT)) == ["2020-01-01", "2021-01-01T10:00:00"]


@pytest.mark.parametrize(
    ("content", "line", "problem"),
    [
        ('{"text": "a"}\n\n{"text": "b"\n', 3, "not valid JSON"),
        ('{"text": "a"}\n{"text": "b"} {"text": "c"}\n', 2, "not valid JSON"),
        ('{"text":\n"a"}\n{"text": "b"}\n', 1, "not valid JSON"),
        ('{"text": "a"}\nb\n', 2, "not valid JSON"),
        ('{"text": "a"}\n["b"]\n', 2, "one JSON object"),
        ('{"text": "a"}\n{"text": 3}\n', 2, "'text' is int here and str in line 1"),
        (b'{"text": "a"}\n{"text": "\xff"}\n', 2, "not UTF-8"),
    ],
)
def test_a_bad_line_of_jsonl_is_named(tmp_path, content, line, problem):
    path = write(tmp_path / "a.jsonl", content)
    with pytest.raises(UserError) as caught:
        load(path, columns=TEXT)
    assert str(caught.value).startswith(f"{path}:{line}: ")
    assert problem in str(caught.value)


def test_csv_with_quoted_commas_and_newlines(tmp_path):
    path = write(tmp_path / "a.csv", 'label,text\n007,"a, b\nand ""c"""\n,\n1,42\n')
    rows = load(path)
    assert values(rows) == ['a, b\nand "c"', "", "42"]
    assert values(rows, "label") == ["007", None, "1"]
    assert rows.where("train", 2) == f"{path}, row 3"


def test_tsv(tmp_path):
    path = write(tmp_path / "a.tsv", "sentence\tgold\na, b\tgood\nc\tbad\n")
    rows = load(path, columns={"text": "sentence", "label": "gold"})
    assert values(rows) == ["a, b", "c"]
    assert values(rows, "label") == ["good", "bad"]


def test_parquet(tmp_path):
    table = pandas.DataFrame({"text": ["a", "b", "c"], "label": [1.0, None, 0.0], "more": [1, 2, 3]})
    table.to_parquet(tmp_path / "a.parquet")
    rows = load(str(tmp_path / "a.parquet"))
    assert rows.splits["train"].column_names == ["text", "label"]
    assert values(rows, "label") == ["1", None, "0"]


def test_parquet_that_declares_its_classes(tmp_path):
    features = datasets.Features(text=datasets.Value("string"), label=datasets.ClassLabel(names=["no", "yes"]))
    table = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, -1]}, features=features)
    table.to_parquet(tmp_path / "a.parquet")
    rows = load(str(tmp_path / "a.parquet"))
    assert rows.labels == ["no", "yes"]
    assert values(rows, "label") == ["yes", None]


def test_plain_text_without_its_blank_lines(tmp_path):
    path = write(tmp_path / "a.txt", "one\n\n  two \r\nthree")
    rows = load(path, columns=TEXT)
    assert values(rows) == ["one", "  two ", "three"]
    assert rows.where("train", 1) == f"{path}:3"


def test_several_files_and_patterns(tmp_path):
    for name in ("b", "a"):
        write_jsonl(tmp_path / f"{name}.jsonl", [{"text": f"{name}{row}", "label": "x"} for row in range(3)])
    odd = write(tmp_path / "odd[1].txt", "four\n")
    rows = load(str(tmp_path / "*.jsonl"), odd, columns=TEXT)
    assert values(rows) == ["a0", "a1", "a2", "b0", "b1", "b2", "four"]
    assert rows.where("train", 4) == f"{tmp_path / 'b.jsonl'}:2"
    assert rows.where("train", 6) == f"{odd}:1"


def test_labels_of_different_types_in_different_files(tmp_path):
    first = write(tmp_path / "a.csv", "text,label\na,1\n")
    second = write(tmp_path / "b.csv", "text,label\nb,x\n")
    assert values(load(first, second), "label") == ["1", "x"]


def test_a_limit_takes_fixed_rows_and_keeps_their_places(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": str(row), "label": row % 2} for row in range(100)])
    rows, again = load(str(path), limit=7), load(str(path), limit=7)
    texts = values(rows)
    assert len(set(texts)) == 7
    assert texts == values(again)
    assert [rows.where("train", index) for index in range(7)] == [f"{path}:{int(text) + 1}" for text in texts]
    assert len(load(str(path), limit=1000).splits["train"]) == 100


def test_columns_may_swap_names(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "answer", "question": "what?"}])
    rows = load(str(path), columns={"prompt": "question", "completion": "text", "label": None})
    assert rows.splits["train"].to_dict() == {"prompt": ["what?"], "completion": ["answer"]}


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.jsonl", "", "no rows"),
        ("a.jsonl", "\n\n", "no rows"),
        ("a.csv", "", "no rows"),
        ("a.csv", "text,label\n", "no rows"),
        ("a.txt", "\n", "no rows"),
        ("a.csv", "text,label\na,b,c\n", "Expected 2 columns"),
        ("a.csv", b"text,label\n\xff,b\n", "UTF8"),
        ("a.parquet", "nonsense", "cannot be read"),
        ("a.doc", "text", "unknown file type '.doc'"),
    ],
)
def test_files_that_cannot_be_used_are_named(tmp_path, name, content, problem):
    path = write(tmp_path / name, content)
    with pytest.raises(UserError, match=problem) as caught:
        load(path)
    assert path in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_pattern_without_files(tmp_path):
    for pattern in ("none.jsonl", "*.jsonl"):
        with pytest.raises(UserError, match=r"dataset\.validation: no such file"):
            FileDataset(train=write(tmp_path / "a.txt", "a"), validation=str(tmp_path / pattern), columns=TEXT).load()


def test_a_missing_column_is_named_with_those_that_are_there(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"sentence": "a", "label": 1}])
    with pytest.raises(UserError, match=r"dataset\.columns\.text: no column 'txt'.*sentence, label"):
        load(str(path), columns={"text": "txt"})
    with pytest.raises(UserError, match=r"dataset\.columns\.text: no column 'text'.*sentence, label.* needs text"):
        check_columns(load(str(path)), SequenceClassification())


@pytest.mark.parametrize("arguments", [{}, {"train": "a.txt", "limit": 0}, {"train": "a.txt", "columns": {"txt": "a"}}])
def test_bad_arguments_are_refused_at_once(arguments):
    with pytest.raises(UserError):
        FileDataset(**arguments)


def test_files_that_do_not_fit_together(tmp_path):
    paths = [write(tmp_path / f"{i}.jsonl", json.dumps({"text": text})) for i, text in enumerate(("a", [1]))]
    with pytest.raises(UserError, match="different columns"):
        load(*paths, columns=TEXT)


def hub_split(path, config, *, split, revision):
    assert (path, config, revision) == ("someone/things", "small", "abc")
    if split == "nothing":
        raise ValueError("Unknown split 'nothing'")
    features = datasets.Features(sentence=datasets.Value("string"), label=datasets.ClassLabel(names=["neg", "pos"]))
    rows = {"sentence": [f"{split} {row}" for row in range(10)], "label": [row % 3 - 1 for row in range(10)]}
    return datasets.Dataset.from_dict(rows, features=features)


def test_hub_class_ids_become_names(monkeypatch):
    monkeypatch.setattr(hub, "load_dataset", hub_split)
    source = HubDataset(
        "someone/things", "small", "abc", test="held_out", columns={"text": "sentence", "label": "label"}, limit=6
    )
    rows = source.load()
    assert rows.labels == ["neg", "pos"]
    assert set(rows.splits) == {"train", "validation", "test"}
    for index, (text, label) in enumerate(zip(values(rows), values(rows, "label"), strict=True)):
        number = int(text.removeprefix("train "))
        assert label == [None, "neg", "pos"][number % 3]
        assert rows.where("train", index) == f"train, row {number + 1}"
    assert values(rows, split="test")[0].startswith("held_out")


def test_a_hub_split_that_is_not_there(monkeypatch):
    monkeypatch.setattr(hub, "load_dataset", hub_split)
    with pytest.raises(UserError, match="cannot load 'someone/things' split 'nothing'"):
        HubDataset("someone/things", "small", "abc", validation="nothing", columns={"text": "sentence"}).load()


def test_declared_labels_win(monkeypatch, tmp_path):
    monkeypatch.setattr(hub, "load_dataset", hub_split)
    columns = {"text": "sentence", "label": "label"}
    assert HubDataset("someone/things", "small", "abc", columns=columns, labels=["pos", "neg"]).load().labels == [
        "pos",
        "neg",
    ]
