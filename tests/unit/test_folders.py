"""A folder is a dataset: its files are found by the names of the splits."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest

from distillkit.data.files import FileDataset
from distillkit.data.hub import HubDataset
from distillkit.data.rows import Rows
from distillkit.errors import UserError
from tests.tiny import write_jsonl


def fill(folder: Path, *names: str) -> Path:
    for name in names:
        write_jsonl(folder / name, [{"text": name}])
    return folder


def texts(rows: Rows) -> dict[str, list[str]]:
    return {split: table["text"][:] for split, table in rows.splits.items()}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("train.jsonl", "validation.jsonl", "test.jsonl", "README.md"), ["train", "validation", "test"]),
        (("train.jsonl", "dev.jsonl"), ["train", "validation"]),
        (("test.jsonl",), ["test"]),
        (("train/b.jsonl", "train/a.jsonl", "valid/x/c.jsonl"), ["train", "validation"]),
    ],
)
def test_files_of_the_usual_names(tmp_path, names, expected):
    for source in (FileDataset(path=str(fill(tmp_path, *names))), HubDataset(str(tmp_path))):
        rows = source.load()
        assert list(rows.splits) == expected
        assert sorted(text for split in texts(rows).values() for text in split) == sorted(set(names) - {"README.md"})


def test_shards_in_their_order(tmp_path):
    fill(tmp_path, "train-00001-of-00002.jsonl", "train-00000-of-00002.jsonl", "train-old.jsonl")
    assert texts(FileDataset(path=str(tmp_path)).load()) == {
        "train": ["train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl"]
    }


def test_what_datasets_saved(tmp_path):
    data = datasets.DatasetDict(train=datasets.Dataset.from_dict({"text": ["a"]}))
    data.save_to_disk(tmp_path / "saved")
    assert texts(FileDataset(path=str(tmp_path / "saved")).load()) == {"train": ["a"]}


def test_names_of_the_user_are_looked_for_in_the_folder(tmp_path):
    fill(tmp_path, "train.jsonl", "mine.jsonl", "validation.jsonl")
    rows = FileDataset(path=str(tmp_path), train="mine.jsonl").load()
    assert texts(rows) == {"train": ["mine.jsonl"], "validation": ["validation.jsonl"]}
    assert rows.name == tmp_path.name


def test_names_of_the_hub_come_first_and_null_leaves_a_split_out(tmp_path):
    fill(tmp_path, "train.jsonl", "validation.jsonl", "validation_matched.jsonl", "test.jsonl", "odd.jsonl")
    rows = HubDataset(str(tmp_path), validation="validation_matched", test=None).load()
    assert texts(rows) == {"train": ["train.jsonl"], "validation": ["validation_matched.jsonl"]}
    assert texts(HubDataset(str(tmp_path), test="odd.jsonl").load())["test"] == ["odd.jsonl"]


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        (lambda folder: FileDataset(path=f"{folder}/none"), r"dataset\.path: no such folder"),
        (lambda folder: HubDataset("./none"), r"dataset\.path: no such folder: none"),
        (
            lambda folder: FileDataset(path=str(folder)),
            r"dataset\.path: no files of a split in .*: notes\.txt; it needs",
        ),
        (lambda folder: FileDataset(path=str(folder), train="a.csv"), r"dataset\.train: no such file: a\.csv"),
        (
            lambda folder: HubDataset(str(folder), train="train[:10%]"),
            r"dataset\.train: 'train\[:10%\]' works on the hub",
        ),
    ],
)
def test_folders_that_do_not_fit(tmp_path, source, problem):
    (tmp_path / "notes.txt").write_text("?")
    with pytest.raises(UserError, match=problem):
        source(tmp_path).load()


def test_two_formats_of_one_split_are_refused(tmp_path):
    fill(tmp_path, "train.jsonl", "train.txt")
    with pytest.raises(UserError, match=r"holds train\.jsonl, train\.txt; name one of them: dataset\.train=FILE"):
        FileDataset(path=str(tmp_path)).load()
