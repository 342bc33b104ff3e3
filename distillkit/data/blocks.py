"""Records that are read in order, so many at a time that no more than these are ever held."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa
from datasets import Features


@dataclass(frozen=True)
class Block:
    """Some records that stand one after the other.

    Attributes:
        size: How many they are, as `Cursor.skip` counts them.
        table: Those that are rows.
        features: Of its columns, as `datasets` keeps them.
        source: Name of the file.
        positions: int64 `[rows]`: where among the records each row is.
        numbers: int64 `[rows]`: what `place` names each row by.
        broken: Number of a record that is no row → what is wrong with it.
        place: Number of a record → its place.
    """

    size: int
    table: pa.Table
    features: Features
    source: str
    positions: np.ndarray
    numbers: np.ndarray
    broken: Mapping[int, str]
    place: Callable[[int], str]


class Cursor(Protocol):
    """A place in a file that moves on."""

    def skip(self, count: int) -> int:
        """Pass over so many records; return how many there were."""
        ...

    def take(self, count: int) -> Block | None:
        """Read at least one and at most so many records; None at the end.

        Raises:
            UserError: If they cannot be read, by file and line where there are lines.
        """
        ...

    def close(self) -> None:
        """Close the file."""
        ...


def read_windows(parts: Sequence[Callable[[], Cursor]], start: int, size: int) -> Iterator[list[Block]]:
    """Yield the blocks of `size` records after the other, from the record `start` on; fewer in the last window.

    Args:
        parts: Open a file each.
        start: Records of all files before the first window.
        size: Of a window.
    """
    blocks: list[Block] = []
    missing = size
    for part in parts:
        with closing(part()) as cursor:
            start -= cursor.skip(start)
            while start == 0 and (block := cursor.take(missing)) is not None:
                blocks.append(block)
                missing -= block.size
                if missing == 0:
                    yield blocks
                    blocks, missing = [], size
    if blocks:
        yield blocks
