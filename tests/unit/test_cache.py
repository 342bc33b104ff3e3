"""Encoded rows are kept on disk: whole or not there, and only for what they were made of."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pytest
from datasets import Dataset

from distillkit.data import cache
from distillkit.data.cache import TableWriter, cached
from distillkit.data.digest import rows_digest, tokenizer_digest
from distillkit.data.encode import Encoded, encode
from distillkit.data.files import FileDataset
from distillkit.errors import UserError
from distillkit.models.tokenizers import ByteLevelBPE
from distillkit.tasks.sequence_classification import SequenceClassification
from tests.tiny import BAD, GOOD, LABELS, data_files, rows, tokenizer, write_jsonl


class Counting(SequenceClassification):
    """Counts how often it encodes."""

    calls = 0

    def encode(self, *arguments):
        type(self).calls += 1
        return super().encode(*arguments)


@pytest.fixture
def folder(tmp_path) -> Path:
    Counting.calls = 0
    return tmp_path / "cache"


def make(writer: TableWriter) -> dict:
    writer.write(pa.table({"x": [1, 2]}))
    return {"made": os.getpid()}


def entries(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_dir()]


def encoded(folder: Path, files: dict, task=None, words=None, labels=LABELS, **arguments) -> Encoded:
    source = FileDataset(**files, labels=LABELS, cache=str(folder), **arguments)
    return encode(source.load(), "train", task or Counting(max_length=16), words or tokenizer(), labels)


def test_the_second_time_nothing_is_encoded(folder, tmp_path):
    files = data_files(tmp_path)
    first = encoded(folder, files)
    again = encoded(folder, files)
    assert Counting.calls == 1
    assert again.rows.to_dict() == first.rows.to_dict()
    assert again.lengths.tolist() == first.lengths.tolist()
    assert again.counts == first.counts
    assert again.rows.data.table["input_ids"].chunk(0).is_valid  # read from the file, not from memory
    assert "length" not in again.rows.column_names


@pytest.mark.parametrize("what", ["row", "order", "template", "length", "labels", "tokenizer", "chat", "bad rows"])
def test_whatever_the_rows_are_made_of_makes_them_anew(folder, tmp_path, what):
    files = data_files(tmp_path)
    made = rows(40, 1)
    words, changes = tokenizer(), {}
    encoded(folder, files, words=words)
    if what == "row":
        write_jsonl(Path(files["train"]), [*made[:-1], made[-1] | {"text": made[-1]["text"][:-1] + "!"}])
    elif what == "order":
        write_jsonl(Path(files["train"]), made[::-1])
    elif what == "template":
        changes = {"template": {"text": "{text}."}}
    elif what == "length":
        changes = {"task": Counting(max_length=17)}
    elif what == "labels":
        changes = {"labels": LABELS[::-1]}
    elif what == "tokenizer":
        changes = {"words": ByteLevelBPE(vocab_size=300).train(GOOD + BAD)}
    elif what == "chat":
        words.chat_template = "{{ messages }}"
        changes = {"words": words}
    else:
        changes = {"on_bad_row": "skip"}
    encoded(folder, files, **{"words": words} | changes)
    assert Counting.calls == 2
    assert len(entries(folder)) == 2


def test_where_files_and_tokenizer_lie_does_not_matter(folder, tmp_path):
    encoded(folder, data_files(tmp_path / "a"))
    tokenizer().save_pretrained(tmp_path / "tokenizer")
    moved = type(tokenizer()).from_pretrained(tmp_path / "tokenizer")
    moved("a text that is cut", truncation=True, max_length=4)  # how it was called last does not matter either
    encoded(folder, data_files(tmp_path / "b"), words=moved)
    assert Counting.calls == 1


def test_rows_picked_by_index_are_told_apart():
    table = Dataset.from_dict({"text": ["a", "b", "c", "d"]})
    picked = [table, table.select([0, 2]), table.select([2, 0]), table.select([1, 2]), table.rename_column("text", "t")]
    assert len({rows_digest(rows) for rows in picked}) == 5
    assert rows_digest(table.select([3, 1])) == rows_digest(table.select([3, 1]))


def test_a_tokenizer_is_known_by_all_that_it_saves():
    one, other = tokenizer(), tokenizer()
    assert tokenizer_digest(one) == tokenizer_digest(other)
    other.padding_side = "left"
    assert tokenizer_digest(one) != tokenizer_digest(other)


@pytest.mark.parametrize("damage", ["cut", "emptied", "facts", "lost"])
def test_a_damaged_entry_is_made_anew(folder, damage):
    folder.mkdir()
    made = []

    def counted(writer: TableWriter) -> dict:
        made.append(1)
        return make(writer)

    cached(folder, "key", counted)
    file = folder / "key/rows.arrow"
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-8])
    elif damage == "emptied":
        file.write_bytes(b"\0" * file.stat().st_size)
    elif damage == "facts":
        (folder / "key/facts.json").write_text('{"rows": ')
    else:
        file.unlink()
    for _ in range(2):
        table, _ = cached(folder, "key", counted)
        assert table.to_pydict() == {"x": [1, 2]}
    assert len(made) == 2


def test_what_fails_leaves_nothing_behind(folder):
    folder.mkdir()

    def fails(writer: TableWriter) -> dict:
        make(writer)
        raise UserError("no")

    with pytest.raises(UserError):
        cached(folder, "key", fails)
    assert entries(folder) == []


SCRIPT = """
import json, sys, time
from pathlib import Path
import pyarrow as pa
from distillkit.data.cache import cached
def make(writer):
    time.sleep(0.5)
    writer.write(pa.table({"x": list(range(1000))}))
    return {"made": sys.argv[2]}
table, facts = cached(Path(sys.argv[1]), "key", make)
print(json.dumps([facts["made"], sum(table["x"].to_pylist())]))
"""


def test_processes_at_once_make_an_entry_once(folder):
    folder.mkdir()
    command = [sys.executable, "-c", SCRIPT, str(folder)]
    started = [subprocess.Popen([*command, name], stdout=subprocess.PIPE) for name in "abc"]
    found = [json.loads(process.communicate()[0]) for process in started]
    assert found[0] == found[1] == found[2]
    assert found[0][1] == 499500
    assert [path.name for path in entries(folder)] == ["key"]


def test_a_writer_widens_its_columns(tmp_path):
    pieces = [{"a": [None], "b": [[1]]}, {"a": ["x"], "b": [[]]}, {"a": [None], "b": [[0.5]], "c": [{"d": 1}]}]
    for path in (None, tmp_path / "rows.arrow"):
        writer = TableWriter(path)
        for piece in pieces:
            writer.write(pa.table(piece))
        assert writer.finish().to_pylist() == [
            {"a": None, "b": [1.0], "c": None},
            {"a": "x", "b": [], "c": None},
            {"a": None, "b": [0.5], "c": {"d": 1}},
        ]
    assert [path.name for path in tmp_path.iterdir()] == ["rows.arrow"]


def test_unused_entries_are_forgotten(folder):
    folder.mkdir()
    (folder / "somebody's").mkdir()
    for key in ("old", "used"):
        cached(folder, key, make)
    long_ago = time.time() - 40 * 24 * 3600
    for path in folder.iterdir():
        os.utime(path, (long_ago, long_ago))
    cached(folder, "used", make)
    cached(folder, "new", make)
    assert {path.name for path in entries(folder)} == {"somebody's", "used", "new"}


def test_where_the_cache_is(tmp_path, monkeypatch):
    monkeypatch.setenv("DISTILLKIT_CACHE", str(tmp_path / "a"))
    assert cache.cache_folder(None) == cache.cache_folder(True) == tmp_path / "a"
    monkeypatch.delenv("DISTILLKIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert cache.cache_folder(None) == tmp_path / "b/distillkit"
    assert cache.cache_folder(str(tmp_path / "c")) == tmp_path / "c"
    assert cache.cache_folder(False) is None
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"dataset\.cache: cannot write to .*file/x .*dataset\.cache=false"):
        cache.cache_folder(str(tmp_path / "file/x"))


def test_without_a_cache_rows_are_encoded_each_time(folder, tmp_path):
    source = FileDataset(**data_files(tmp_path), cache=False)
    for _ in range(2):
        data = encode(source.load(), "train", Counting(max_length=16), tokenizer(), LABELS)
    assert Counting.calls == 2
    assert len(data) == 40
    assert not folder.exists()
