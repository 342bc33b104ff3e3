"""What the readers of files share: what is to be read, and the lines of a file."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Collection, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, cast

import pyarrow as pa

from distillkit.errors import UserError

BLOCK = 32 << 20  # bytes that are parsed at a time
ROWS = 10_000  # of a table that a reader yields
UNREADABLE = (pa.ArrowException, OSError, EOFError, zlib.error)


@dataclass(frozen=True)
class Reading:
    """How a file is read.

    Attributes:
        path: The file.
        wanted: Columns that must be of one kind throughout; the others are passed over where they are not.
        lenient: Pass over broken records instead of stopping.
        passed_over: Those records: their number among the file's records, from 0 → what is wrong.
    """

    path: Path
    wanted: Collection[str]
    lenient: bool = False
    passed_over: dict[int, str] = field(default_factory=dict)


def suffix(path: Path) -> str:
    """Return the ending that tells the format."""
    return (path.with_suffix("") if path.suffix == ".gz" else path).suffix


def lines(path: Path) -> Generator[tuple[int, bytes], None, None]:
    """Yield the lines that are not blank, with their numbers."""
    with open_bytes(path) as file:
        for number, line in enumerate(file, start=1):
            text = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if text.strip():
                yield number, text.rstrip(b"\r\n")


@contextmanager
def readable(name: str) -> Iterator[None]:
    """Say in one line that a source cannot be read."""
    try:
        yield
    except UNREADABLE as error:
        raise UserError(f"cannot be read: {str(error).splitlines()[0]}", where=name) from error


def open_bytes(path: Path) -> BinaryIO:
    """Open a file, unpacked."""
    return cast(BinaryIO, gzip.open(path)) if path.suffix == ".gz" else path.open("rb")
