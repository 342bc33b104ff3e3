"""How a teacher's outputs become bytes and come back: what every format is.

A codec answers for *items* (`distillkit.signals`), and a store keeps them by source row: each row has one binary value
in each of the codec's columns, with all that its items need, so that rows can be read in any order. A column holds
numbers of a fixed width (`distillkit.cache.bits`). `describe` says so in the store, in enough detail to read it without
distillkit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from distillkit.cache.bits import pack
from distillkit.signals import DenseLogits, SparseLogits

Columns = Mapping[str, Sequence[bytes]]  # column → one value for each row


@dataclass(frozen=True)
class Numbers:
    """One column of some items.

    Attributes:
        values: Unsigned integers, flat.
        bits: Of each.
        counts: int64 `[items]`: how many belong to each item.
    """

    values: np.ndarray
    bits: int
    counts: np.ndarray


@dataclass(frozen=True)
class Encoded:
    """What is kept of some items, not yet packed by row."""

    columns: dict[str, Numbers]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())).counts)

    @staticmethod
    def join(parts: Sequence[Encoded]) -> Encoded:
        """Put successive items together."""
        joined = {}
        for name, first in parts[0].columns.items():
            columns = [part.columns[name] for part in parts]
            values = np.concatenate([column.values for column in columns])
            joined[name] = Numbers(values, first.bits, np.concatenate([column.counts for column in columns]))
        return Encoded(joined)

    def pack(self, lengths: Sequence[int]) -> dict[str, list[bytes]]:
        """Pack the items of successive rows.

        Args:
            lengths: How many items each row has: together all of them; zero is allowed.

        Returns:
            The columns, with one value for each row.
        """
        if sum(lengths) != len(self):
            raise ValueError(f"rows of {sum(lengths)} items cannot hold {len(self)}")
        ends = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        packed = {}
        for name, column in self.columns.items():
            before = np.concatenate([[0], np.cumsum(column.counts)])[ends]
            packed[name] = pack(column.values, column.bits, np.diff(before))
        return packed


class Codec(Protocol):
    """A config node: what is kept of an item.

    Attributes:
        name: As the description of a store calls it.
    """

    name: str

    def describe(self, classes: int) -> dict[str, Any]:
        """Return what a store says about its format (JSON); `distillkit.cache.formats.codec_of` takes it back."""
        ...

    def encode(self, logits: Tensor, seeds: Tensor) -> Encoded:
        """Encode what a teacher says about some items; it does not matter which items come together.

        Args:
            logits: Float `[items, classes]`, on any device.
            seeds: int64 `[items]`: what the random draws of an item depend on, besides its logits.
        """
        ...

    def decode(self, columns: Columns, classes: int) -> DenseLogits | SparseLogits:
        """Return the items of some rows, in order, on the CPU.

        Raises:
            ValueError: If the columns do not fit each other.
        """
        ...
