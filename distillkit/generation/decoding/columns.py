"""Keys and values of rows that come and go: what a transformers cache holds, in buffers that rows enter and leave.

Rows are aligned on the right: the newest token of every row lies in the same column, and what a shorter row lacks on
the left is masked. So a step writes one column, another row is written over a finished one, and nothing else moves.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

SLACK = 64  # columns that a buffer has to spare when it is made


class Columns:
    """Which columns of the buffers are in use: the rows, whose newest token is in the last one.

    Args:
        lengths: int64 `[rows]`: columns of each row.
    """

    def __init__(self, lengths: Tensor) -> None:
        self.lengths = lengths
        self.start = 0
        self.stop = 0

    def mask(self) -> Tensor:
        """Mark the columns of each row among those in use: int64 `[rows, width]`."""
        width = int(self.lengths.max())
        return (torch.arange(width) >= width - self.lengths.unsqueeze(1)).long()


class ColumnLayer(DynamicLayer):
    """One layer's keys and values `[rows, heads, columns, width]`, over the columns in use.

    It stands in for sliding windows too: keys beyond the window are kept, and masked.

    Args:
        columns: Shared by all layers of a cache.
        is_sliding: Of the layer that it stands in for: decides which mask the model makes for it.
    """

    def __init__(self, columns: Columns, is_sliding: bool = False) -> None:
        super().__init__()
        self.columns = columns
        self.is_sliding = is_sliding
        self.buffers: list[Tensor] = []

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """Write what the newest tokens add; return everything."""
        start, stop, length = self.columns.start, self.columns.stop, key_states.shape[-2]
        if not self.buffers:
            self.buffers = [_room(states, length + SLACK) for states in (key_states, value_states)]
        for buffer, states in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[:, :, stop : stop + length] = states
        self.keys, self.values = (buffer[:, :, start : stop + length] for buffer in self.buffers)
        self.is_initialized = True
        return self.keys, self.values

    def get_seq_length(self) -> int:
        """Return the columns in use before the step under way."""
        return self.columns.stop - self.columns.start

    @property
    def capacity(self) -> int:
        """Columns that the buffers have."""
        return self.buffers[0].shape[-2]

    def keep(self, rows: Tensor) -> None:
        """Make buffers of some rows, which may be named several times, and of the columns in use alone."""
        start, stop = self.columns.start, self.columns.stop
        old, self.buffers = self.buffers, []
        for buffer in old:
            part = buffer[:, :, start:stop]
            made = part.new_zeros((len(rows), part.shape[1], stop - start + SLACK, part.shape[3]))
            self.buffers.append(made)
            made[:, :, : stop - start] = part.index_select(0, rows)

    def put(self, rows: Tensor, other: ColumnLayer) -> None:
        """Put the rows of another cache, which is as wide or narrower, in the places `rows` of this one."""
        stop, theirs = self.columns.stop, other.columns
        width = theirs.stop - theirs.start
        for buffer, new in zip(self.buffers, other.buffers, strict=True):
            buffer[rows, :, stop - width : stop] = new[:, :, theirs.start : theirs.stop]


class SourceLayer(DynamicLayer):
    """One layer's keys and values over what an encoder has read, `[rows, heads, columns, width]`, from the left."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """Keep what was read."""
        self.keys, self.values = key_states, value_states
        self.is_initialized = True
        return self.keys, self.values

    def keep(self, rows: Tensor, length: int) -> None:
        """Keep some rows, which may be named several times, and so many columns."""
        self.keys, self.values = (states[:, :, :length].index_select(0, rows) for states in (self.keys, self.values))

    def put(self, rows: Tensor, other: SourceLayer) -> None:
        """Put the rows of another cache, which is as wide or narrower, in the places `rows` of this one."""
        for states, new in ((self.keys, other.keys), (self.values, other.values)):
            states[rows, :, : new.shape[2]] = new


def _room(states: Tensor, capacity: int) -> Tensor:
    return states.new_zeros((*states.shape[:2], capacity, states.shape[-1]))
