"""What a task may say about the rows that it encodes, and encoding in several processes."""

from __future__ import annotations

from typing import Any

import pytest

from distillkit.data.encode import Encoded, encode
from distillkit.data.files import FileDataset
from distillkit.errors import UserError
from distillkit.tasks.base import Task
from distillkit.tasks.sequence_classification import SequenceClassification
from tests.tiny import LABELS, data_files, tokenizer, write_jsonl


class Words(Task):
    """Gives a row for every word; refuses "bad", leaves out "short", cuts "long"."""

    name = "words"
    required_columns = (("text",),)
    has_classes = False

    def encode(self, rows: dict[str, list[Any]], tokenizer: Any, label_ids: dict[str, int] | None) -> dict[str, list]:
        columns: dict[str, list] = {"row": [], "word": [], "truncated": [], "length": [], "bad": []}
        for index, text in enumerate(rows["text"]):
            if "bad" in text:
                columns["bad"].append((index, f"'{text}' is bad"))
            for word in text.split() if text != "short" else []:
                columns["row"].append(index)
                columns["word"].append(word)
                columns["truncated"].append(word == "long")
                columns["length"].append(len(word))
        return columns

    def collate(self, rows, tokenizer):
        return rows


class Unplaced(Words):
    """Does not say where its rows come from."""

    def encode(self, *arguments):
        columns = super().encode(*arguments)
        del columns["row"]
        return columns


def data(tmp_path, texts: list[str], task: Task | None = None, **arguments) -> Encoded:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in texts])
    return encode(FileDataset(train=str(path), **arguments).load(), "train", task or Words(), tokenizer(), None)


TEXTS = ["one two", "short", "a bad one", "long and long", "end"] * 500


def test_reserved_columns(tmp_path):
    rows = data(tmp_path, TEXTS, on_bad_row="skip")
    assert rows.rows.column_names == ["word", "row"]
    assert rows.rows[:6] == {"word": ["one", "two", "long", "and", "long", "end"], "row": [0, 0, 3, 3, 3, 4]}
    assert rows.rows[-1] == {"word": "end", "row": 2499}
    assert rows.lengths[:6].tolist() == [3, 3, 4, 3, 4, 3]
    assert rows.origins[-4:].tolist() == [2498, 2498, 2498, 2499]
    counts = rows.counts
    assert (counts.rows, counts.encoded, counts.bad, counts.left_out, counts.truncated) == (2500, 3000, 500, 500, 500)


def test_bad_rows_of_a_task_are_refused_with_their_place(tmp_path):
    with pytest.raises(UserError, match=r"a\.jsonl:3: 'a bad one' is bad; at least 199 more of 2,500 rows are bad"):
        data(tmp_path, TEXTS)


def test_rows_that_nobody_places(tmp_path):
    rows = data(tmp_path, ["one two", "three"], Unplaced())
    assert rows.rows.column_names == ["word"]
    assert rows.counts.left_out == 0
    with pytest.raises(ValueError, match="not which row"):
        data(tmp_path, ["one two", "bad"], Unplaced())


def test_several_processes_give_the_same_rows_in_the_same_order(tmp_path):
    files = data_files(tmp_path, 2500)
    task = SequenceClassification(max_length=16)
    one, two = (
        encode(
            FileDataset(**files, labels=LABELS, num_workers=n, cache=False).load(), "train", task, tokenizer(), LABELS
        )
        for n in (0, 2)
    )
    assert one.rows.to_dict() == two.rows.to_dict()
    assert one.counts == two.counts


def test_a_number_of_processes_is_checked():
    with pytest.raises(UserError, match=r"dataset\.num_workers"):
        FileDataset(train="a", num_workers=-1)
