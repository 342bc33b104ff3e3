"""Rows of one split that stand in a later one."""

from __future__ import annotations

import pytest

from distillkit.data import leaks
from distillkit.data.files import FileDataset
from distillkit.data.mixed import MixedDataset
from distillkit.data.rows import Rows
from distillkit.errors import UserError
from tests.tiny import write_jsonl

TRAIN = ["One thing.", "two", "three", "!?", "four"]
VALIDATION = ["ONE   thing", "five", "four", "..."]
TEST = ["five", "2", "three"]


def source(tmp_path, **arguments) -> FileDataset:
    files = {
        split: str(write_jsonl(tmp_path / f"{split}.jsonl", [{"text": text} for text in texts]))
        for split, texts in (("train", TRAIN), ("validation", VALIDATION), ("test", TEST))
    }
    return FileDataset(**files, **arguments)


def texts(rows: Rows) -> dict[str, list[str]]:
    return {split: table["text"][:] for split, table in rows.splits.items()}


def test_leaks_are_reported_with_their_places(tmp_path):
    rows = source(tmp_path).load()
    train, validation = rows.notes
    assert train.startswith(f"3 of 5 train rows also stand in a later split: {tmp_path / 'train.jsonl'}:1; ")
    assert validation.startswith(f"1 of 4 validation rows also stand in a later split: {tmp_path}/validation.jsonl:2; ")
    assert texts(rows) == {"train": TRAIN, "validation": VALIDATION, "test": TEST}


def test_leaks_are_dropped_from_the_earlier_split(tmp_path):
    rows = source(tmp_path, on_leak="drop").load()
    assert texts(rows) == {"train": ["two", "!?"], "validation": ["ONE   thing", "four", "..."], "test": TEST}
    assert rows.where("train", 1).endswith("train.jsonl:4")
    assert rows.notes[0].endswith("(left out)")


def test_leaks_are_refused_or_ignored(tmp_path):
    with pytest.raises(UserError, match=r"dataset: 3 of 5 train rows .*; dataset\.on_leak=drop"):
        source(tmp_path, on_leak="refuse").load()
    assert source(tmp_path, on_leak="ignore").load().notes == ()
    with pytest.raises(UserError, match=r"dataset\.on_leak: unknown choice 'repot'; did you mean 'report'"):
        source(tmp_path, on_leak="repot")


def test_many_leaks_are_counted_and_a_few_shown(tmp_path):
    lines = [{"text": f"t{row}"} for row in range(9)]
    files = {split: str(write_jsonl(tmp_path / f"{split}.jsonl", lines)) for split in ("train", "test")}
    (note,) = FileDataset(**files).load().notes
    assert note.count("train.jsonl:") == 3
    assert "; 6 more; " in note


def test_pairs_leak_as_pairs_and_instructions_with_their_input(tmp_path):
    def notes(train: dict, test: dict) -> int:
        files = {s: str(write_jsonl(tmp_path / f"{s}.jsonl", [row])) for s, row in (("train", train), ("test", test))}
        return len(FileDataset(**files).load().notes)

    assert notes({"text": "a", "text_pair": "b"}, {"text": "a", "text_pair": "c"}) == 0
    assert notes({"text": "ab", "text_pair": "c"}, {"text": "a", "text_pair": "bc"}) == 0
    assert notes({"text": "a", "text_pair": "b"}, {"text": "A", "text_pair": "B"}) == 1
    assert notes({"instruction": "a", "input": "1"}, {"instruction": "a", "input": "2"}) == 0
    assert notes({"instruction": "a", "input": ""}, {"instruction": "a", "input": ""}) == 1
    assert notes({"question": "a", "context": "c"}, {"question": "b", "context": "c"}) == 1
    assert notes({"tokens": ["a", "b"]}, {"tokens": ["a", "b"]}) == 1
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert notes({"messages": turns}, {"messages": [turns[0], turns[1] | {"content": "c"}]}) == 1
    assert notes({"text": "a"}, {"source": "a"}) == 0


def test_leaks_between_sources(tmp_path):
    pseudo = FileDataset(train=str(write_jsonl(tmp_path / "p.jsonl", [{"text": "six"}, {"text": "Five!"}])))
    sources = {"real": {"dataset": source(tmp_path)}, "pseudo": {"dataset": pseudo, "weight": 2.0}}
    rows = MixedDataset(sources).load()
    assert [note.partition(":")[0] for note in rows.notes] == ["real", "real", "pseudo"]
    assert "1 of 2 train rows" in rows.notes[2]
    rows = MixedDataset(sources, on_leak="drop").load()
    assert set(rows.splits["train"]["text"][:]) == {*TRAIN, "six"}
    last = len(rows.splits["train"]) - 1
    assert rows.where("train", last).endswith("p.jsonl:1")


def test_what_was_found_among_many_rows_is_remembered_until_a_row_changes(tmp_path, monkeypatch):
    searched = []
    search = leaks._search
    monkeypatch.setattr(leaks, "LARGE", 0)
    monkeypatch.setattr(leaks, "_search", lambda *arguments: searched.append(1) or search(*arguments))
    found = [source(tmp_path, on_leak="drop", cache=str(tmp_path / "cache")).load() for _ in range(3)]
    assert len(searched) == 1
    assert [texts(rows) for rows in found] == [texts(found[0])] * 3
    assert found[2].notes == found[0].notes
    assert texts(source(tmp_path, on_leak="drop", cache=False).load()) == texts(found[0])
    filtered = source(tmp_path, cache=str(tmp_path / "cache"), filter={"text": {"not": "two"}}).load()
    assert len(searched) == 3
    assert filtered.notes[-2].startswith("3 of 4 train rows also stand in a later split")
    monkeypatch.setitem(globals(), "TRAIN", ["five", *TRAIN[1:]])
    changed = source(tmp_path, cache=str(tmp_path / "cache")).load()
    assert len(searched) == 4
    assert changed.notes[0].startswith(f"3 of 5 train rows also stand in a later split: {tmp_path / 'train.jsonl'}:1")
