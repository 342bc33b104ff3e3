"""A run in shards: each is answered alone, written whole, and never again once it is there.

A shard `part-000123.parquet` is written beside and renamed, with its checksum in `part-000123.json`. So a run that was
killed at any moment goes on with the shards that are not there, any number of processes share them, and what comes out
is the same files.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from distillkit.data.sealed import checksum, sealed, unsealed
from distillkit.errors import UserError

BEGUN = "begun.json"  # what the shards were made of
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
LOCKED = (errno.EROFS, errno.EACCES, errno.EPERM)
ROW_GROUP = 4096  # rows that a reader of a shard holds at a time
Format = Callable[[pa.Table], pa.Buffer]


@dataclass(frozen=True)
class Shards:
    """The shards of one run in a folder.

    Attributes:
        folder: Where they lie.
        total: Source rows.
        size: Source rows of a shard.
        ending: Of the files.
    """

    folder: Path
    total: int
    size: int
    ending: str = "parquet"

    def __len__(self) -> int:
        return ceil(self.total / self.size)

    def bounds(self, number: int) -> tuple[int, int]:
        """Return the source rows `[start, stop)` of a shard."""
        return number * self.size, min(self.total, (number + 1) * self.size)

    def path(self, number: int) -> Path:
        """Return where a shard lies."""
        return self.folder / f"part-{number:06d}.{self.ending}"

    def facts(self, number: int) -> dict[str, int | str] | None:
        """Return the rows, bytes and checksum of a shard as they were written; None if it is not whole."""
        try:
            found = unsealed(_sidecar(self.path(number)).read_bytes())
            whole = self.path(number).stat().st_size == found["bytes"]
        except (OSError, ValueError):
            return None
        return found if whole else None

    def begin(self, origin: Mapping[str, str]) -> None:
        """Take the folder for shards of one origin, and clear what a killed process left half written.

        Args:
            origin: What the shards are made of → its fingerprint.

        Raises:
            UserError: If the folder holds shards of another origin, or cannot be written.
        """
        path = self.folder / BEGUN
        before = self.origin() if path.exists() else origin
        changed = [name for name in origin if before.get(name) != origin[name]]
        if changed:
            what = " and the ".join(changed)
            raise UserError(
                f"the {what} changed since the first shards were written to {self.folder} (says {BEGUN})",
                where="output_dir",
                fix="choose another output_dir, or delete that folder to ask the teacher anew",
            )
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            for left in self.folder.glob(".*.partial"):
                left.unlink()
            replace(path, (json.dumps(dict(origin), indent=1) + "\n").encode())

    def origin(self) -> dict[str, str]:
        """Return what `begin` was told.

        Raises:
            UserError: If the file that says so was damaged.
        """
        path = self.folder / BEGUN
        try:
            return dict(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            fix = "choose another output_dir, or delete that folder to ask the teacher anew"
            raise UserError(f"{path} is damaged ({error})", where="output_dir", fix=fix) from error

    def join(self) -> None:
        """Refuse to take part where what `begin` wrote, perhaps on another machine, is not to be seen."""
        if not (self.folder / BEGUN).exists():
            what = f"{self.folder} is not the folder that the first process writes to"
            raise UserError(what, where="output_dir", fix="choose one that all machines share")

    def missing(self) -> list[int]:
        """Return the shards that are not there, or not whole."""
        return [number for number in range(len(self)) if self.facts(number) is None]

    def write(self, number: int, table: pa.Table, encode: Format | None = None) -> None:
        """Put a shard in its place, safe from a crash of the machine too.

        Args:
            number: Of the shard.
            table: Its rows.
            encode: Table → the bytes of the file; Parquet by default.

        Raises:
            UserError: If the disk is full or the folder cannot be written.
        """
        data = (encode or parquet)(table)
        facts = {"rows": table.num_rows, "bytes": data.size, "sha256": hashlib.sha256(data).hexdigest()}
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            replace(self.path(number), data)
            replace(_sidecar(self.path(number)), (json.dumps(sealed(facts)) + "\n").encode())

    def check(self, number: int) -> None:
        """Compare a shard with its checksum.

        Raises:
            UserError: If it was changed since it was written, or is not there.
        """
        facts = self.facts(number)
        check_sum(self.path(number), None if facts is None else str(facts["sha256"]))

    def schema(self, number: int) -> pa.Schema:
        """Return the columns of a shard of Parquet, which is checked first.

        Raises:
            UserError: If it was damaged.
        """
        self.check(number)
        return pq.read_schema(self.path(number))

    def batches(self) -> Iterator[list[dict[str, object]]]:
        """Yield the rows of all shards in order, some at a time, each shard checked first.

        Raises:
            UserError: If a shard was damaged.
        """
        for number in range(len(self)):
            self.check(number)
            with pq.ParquetFile(self.path(number)) as file:
                for batch in file.iter_batches(ROW_GROUP):
                    yield batch.to_pylist()


def parquet(table: pa.Table) -> pa.Buffer:
    """Return a table as the bytes of a Parquet file."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=ROW_GROUP, compression="zstd")
    return sink.getvalue()


def check_sum(path: Path, expected: str | None) -> None:
    """Compare the SHA-256 of a file with what it was.

    Raises:
        UserError: If it is another, or not known.
    """
    if expected is not None and checksum(path) == expected:
        return
    fix = "delete it and run the generate-pseudo command again"
    raise UserError("the shard was damaged after it was written", where=str(path), fix=fix)


def replace(path: Path, data: pa.Buffer | bytes) -> None:
    """Write a file beside and rename it, with both on the disk before returning; leave nothing if that fails."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    handle = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Say in one line that a folder cannot be written, and that what is there is kept."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL + LOCKED:
            raise
        more = "make room" if error.errno in FULL else "make it writable"
        raise UserError(
            f"cannot write to {folder} ({error.strerror or error})",
            where="output_dir",
            fix=f"{more} and run the same command again: it goes on where it stopped",
        ) from error


def _sidecar(path: Path) -> Path:
    return path.with_suffix(".json")
