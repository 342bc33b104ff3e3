"""Every format gives the same rows, small or large."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import datasets
import pyarrow as pa
import pytest

from distillkit.data import prepare, readers, selection
from distillkit.data.files import FileDataset
from distillkit.errors import UserError

ROWS = [{"text": f"text {row}", "label": "ab"[row % 2]} for row in range(25)]


def jsonl(path: Path) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))


def csv(path: Path, delimiter: str = ",") -> None:
    path.write_text("\n".join(delimiter.join(row.values()) for row in [{"text": "text", "label": "label"}, *ROWS]))


def packed(path: Path) -> None:
    plain = path.with_suffix("")
    WRITERS[plain.suffix](plain)
    path.write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()


def stream(path: Path) -> None:
    table = pa.Table.from_pylist(ROWS)
    with pa.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table)


def arrow_file(path: Path) -> None:
    table = pa.Table.from_pylist(ROWS)
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table)


WRITERS = {
    ".jsonl": jsonl,
    ".json": lambda path: path.write_text(json.dumps(ROWS)) and None,
    ".csv": csv,
    ".tsv": lambda path: csv(path, "\t"),
    ".parquet": lambda path: datasets.Dataset.from_list(ROWS).to_parquet(path) and None,
    ".arrow": stream,
}


@pytest.mark.parametrize("name", [*(f"a{ending}" for ending in WRITERS), "a.jsonl.gz", "a.csv.gz", "a.json.gz"])
@pytest.mark.parametrize("large", [False, True])
def test_formats(tmp_path, name, large, monkeypatch):
    for module in (readers, selection, prepare) if large else ():
        monkeypatch.setattr(module, "LARGE", 0)
    path = tmp_path / name
    (packed if path.suffix == ".gz" else WRITERS[path.suffix])(path)
    source = FileDataset(
        train=str(path), template={"prompt": "{text}?"}, filter={"label": "a"}, cache=str(tmp_path / "c")
    )
    for _ in range(2):  # the second time from the cache, where it is large
        rows = source.load()
        train = rows.splits["train"]
        assert train.to_list() == [row | {"prompt": f"{row['text']}?"} for row in ROWS if row["label"] == "a"]
        assert rows.where("train", 1) in (f"{path}:3", f"{path}, row 3")
    assert len(list((tmp_path / "c").glob("*/rows.arrow"))) == (0 if not large else 1 if name == "a.arrow" else 2)


def test_a_large_file_that_changed_is_read_again(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "LARGE", 0)
    path = tmp_path / "a.txt"
    path.write_text("one\n")
    assert FileDataset(train=str(path)).load().splits["train"]["text"][:] == ["one"]
    path.write_text("three\n")
    assert FileDataset(train=str(path)).load().splits["train"]["text"][:] == ["three"]


def test_a_large_file_with_rows_that_arrow_cannot_type(tmp_path, monkeypatch):
    """What was converted before Arrow gave up is thrown away."""
    monkeypatch.setattr(readers, "LARGE", 0)
    monkeypatch.setattr("distillkit.data.jsonl.BLOCK", 64)
    path = tmp_path / "a.jsonl"
    rows = [{"text": f"{row}", "score": row if row < 30 else None} for row in range(40)] + [{"text": "x", "score": 0.5}]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"text": 3}]))
    found = FileDataset(train=str(path), on_bad_row="skip").load()
    assert found.splits["train"].to_list() == [row | {"score": row["score"]} for row in rows]
    assert f"{path}:42: 'text' is int here and str in line 1" in found.notes[0]


def test_an_arrow_file_in_the_file_format(tmp_path):
    arrow_file(tmp_path / "a.arrow")
    assert FileDataset(train=str(tmp_path / "a.arrow")).load().splits["train"].to_list() == ROWS


def test_dates_inside_lists_stay_text(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"tokens": ["2020-01-01"], "messages": [{"role": "2020-01-01"}]}\n')
    rows = FileDataset(train=str(path)).load().splits["train"]
    assert rows.to_list() == [{"tokens": ["2020-01-01"], "messages": [{"role": "2020-01-01"}]}]


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.jsonl.gz", b"not packed", "cannot be read"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 1000)[:-20], "cannot be read"),
        ("a.arrow", b"nonsense", "cannot be read"),
        ("a.json", b"[1, 2", "not valid JSON"),
        ("a.json", b"[]", "no rows"),
        ("a.xlsx.gz", b"", "unknown file type"),
    ],
)
def test_damaged_files_are_named(tmp_path, name, content, problem):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=problem) as caught:
        FileDataset(train=str(tmp_path / name)).load()
    assert name in str(caught.value)
