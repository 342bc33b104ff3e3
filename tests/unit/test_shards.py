"""Shards: written whole with a checksum, never twice, and damage is named."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pyarrow as pa
import pytest

from distillkit.cache.shards import Shards, replace
from distillkit.errors import UserError
from distillkit.generation.writer import common, to_table

ORIGIN = {"rows": "abc", "teacher": "def"}


@pytest.fixture
def shards(tmp_path) -> Shards:
    made = Shards(tmp_path / "generated", total=10, size=4)
    made.begin(ORIGIN)
    return made


def fill(shards: Shards, *numbers: int) -> None:
    for number in numbers:
        start, stop = shards.bounds(number)
        shards.write(number, to_table([{"text": f"row {index}"} for index in range(start, stop)]))


def test_the_rows_are_cut_into_shards_whatever_the_processes_are(shards):
    assert len(shards) == 3
    assert [shards.bounds(number) for number in range(3)] == [(0, 4), (4, 8), (8, 10)]


def test_what_is_missing_is_what_was_not_written_whole(shards):
    fill(shards, 0, 2)
    assert shards.missing() == [1]
    shards.path(2).write_bytes(shards.path(2).read_bytes()[:-1])  # cut off
    shards.path(0).with_suffix(".json").unlink()  # killed between the file and its checksum
    assert shards.missing() == [0, 1, 2]


def test_a_shard_is_the_same_file_each_time(shards):
    fill(shards, 0)
    before = shards.path(0).read_bytes(), shards.path(0).with_suffix(".json").read_bytes()
    fill(shards, 0)
    assert (shards.path(0).read_bytes(), shards.path(0).with_suffix(".json").read_bytes()) == before


def test_all_rows_come_back_in_order_a_few_at_a_time(shards):
    fill(shards, 2, 0, 1)
    batches = list(shards.batches())
    assert [row["text"] for batch in batches for row in batch] == [f"row {index}" for index in range(10)]
    assert max(map(len, batches)) <= 4


@pytest.mark.parametrize("bit", [0, 200, -10])
def test_a_flipped_bit_is_found_and_the_shard_named(shards, bit):
    fill(shards, 0, 1, 2)
    data = bytearray(shards.path(1).read_bytes())
    data[bit] ^= 1
    shards.path(1).write_bytes(data)
    with pytest.raises(UserError, match=r"part-000001\.parquet: the shard was damaged"):
        list(shards.batches())


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    replace(tmp_path / "file", b"old")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            replace(tmp_path / "file", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == b"old"


def test_a_full_disk_is_one_clear_line_and_what_is_there_is_kept(shards, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    fill(shards, 0)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match=r"^output_dir: cannot write to .* \(No space left on device\); make room"):
            fill(shards, 1)
    assert shards.missing() == [1, 2]
    fill(shards, 1, 2)
    assert shards.missing() == []


def test_a_folder_that_cannot_be_written_is_one_clear_line(tmp_path, monkeypatch):
    def locked(self: Path, *arguments: object, **named: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "mkdir", locked)
    with pytest.raises(UserError, match=r"^output_dir: cannot write to .* \(Permission denied\); make it writable"):
        Shards(tmp_path / "generated", 10, 4).begin(ORIGIN)


def test_other_errors_are_not_hidden(shards, monkeypatch):
    def broken(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="Input/output"):
        fill(shards, 0)


def test_shards_of_other_rows_or_weights_do_not_mix(shards):
    shards.begin(ORIGIN)
    with pytest.raises(UserError, match=r"^output_dir: the teacher changed since the first shards were written"):
        shards.begin(ORIGIN | {"teacher": "other weights"})
    with pytest.raises(UserError, match=r"the rows and the teacher changed"):
        shards.begin({"rows": "x", "teacher": "y"})


def test_what_a_killed_process_left_is_cleared(shards):
    left = shards.folder / ".part-000001.parquet.123.partial"
    left.write_bytes(b"half")
    shards.begin(ORIGIN)
    assert not left.exists()


def test_a_machine_that_does_not_share_the_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"^output_dir: .* choose one that all machines share"):
        Shards(tmp_path / "elsewhere", 10, 4).join()


def test_a_column_that_is_empty_in_one_shard_takes_the_type_of_the_others():
    tables = [to_table([{"text": "a", "log_prob": None}]), to_table([]), to_table([{"text": "b", "log_prob": -1.5}])]
    kind = common(table.schema for table in tables)
    assert kind.field("log_prob").type == pa.float64()
    assert kind.names == ["text", "log_prob"]
