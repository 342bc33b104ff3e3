"""A training split that is read window by window and never held as a whole: larger than memory, or than the disk."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features

from distillkit.data.bad_rows import settle
from distillkit.data.blocks import Block, Cursor, read_windows
from distillkit.data.leaks import Texts, settle_leaks
from distillkit.data.prepare import Preparation, Raw, prepare, prepare_split
from distillkit.data.rows import Rows, Stream, Streaming, Window
from distillkit.data.selection import Selection
from distillkit.data.splits import by_split, fraction_of, key_columns
from distillkit.errors import UserError


def stream(name: str, parts: Sequence[Callable[[], Cursor]], raws: Mapping[str, Raw], wanted: Preparation) -> Rows:
    """Prepare a dataset whose training rows are streamed; the other splits are held as ever.

    Args:
        name: Of the dataset.
        parts: Open a source of training rows each; they are read in this order.
        raws: The other splits as they were read.
        wanted: What is to be done.

    Raises:
        UserError: If the settings do not fit the rows, or bad rows or leaks are refused.
    """
    settings = wanted.streaming
    assert settings is not None
    start, raws = 0, dict(raws)
    if settings.validation_rows is not None and "validation" not in raws:
        blocks = next(read_windows(parts, 0, settings.validation_rows), [])
        start, raws["validation"] = sum(block.size for block in blocks), _joined(blocks, name)
    held = prepare(name, raws, wanted)
    rows = WindowedRows(name, tuple(parts), wanted, settings, start)
    if wanted.on_leak != "ignore" and held.splits:
        columns = key_columns(sorted(set.intersection(*(set(split.column_names) for split in held.splits.values()))))
        others = [Selection.of(split) for split in held.splits.values()]
        rows = replace(rows, others=Texts.of(others, columns) if columns else None)
    first = rows.first
    said = [f"validation: the first {start:,} rows of the training files"] if start else []

    def where(split: str, index: int) -> str:
        return first.place(index) if split == "train" else held.where(split, index)

    return replace(
        held,
        splits={"train": first.table, **held.splits},
        labels=wanted.labels or rows.declared or held.labels,
        where=where,
        notes=(*said, *first.notes.values(), *held.notes),
        sources={"train": rows.source, **held.sources},
        stream=rows,
    )


@dataclass(frozen=True)
class WindowedRows:
    """Training rows, prepared window by window.

    Attributes:
        name: Of the dataset.
        parts: Open a source of rows each.
        wanted: What is to be done with the rows.
        settings: How they are streamed.
        start: Records before the first window, which are validation rows.
        others: What the other splits say; None where nobody asks or there is nothing to compare.
        left_out: Columns that are not wanted.
    """

    name: str
    parts: tuple[Callable[[], Cursor], ...]
    wanted: Preparation
    settings: Streaming
    start: int = 0
    others: Texts | None = None
    left_out: frozenset[str] = frozenset()

    @cached_property
    def first(self) -> Window:
        """The first window that has rows.

        Raises:
            UserError: If there is none.
        """
        for window in self.windows(self.start):
            if len(window.table):
                return window
        why = "every row is bad, or dataset.filter or dataset.fraction leaves none" if self._sample else "it is empty"
        raise UserError(f"the training rows of '{self.name}' come to nothing", where="dataset", fix=why)

    @property
    def size(self) -> int:
        """Records of a window; the last one may have fewer."""
        return self.settings.window

    @property
    def source(self) -> tuple[str, tuple[str, ...]]:
        """The name of the first file, and its columns."""
        raw = _joined(self._sample, self.name)
        return raw.name, tuple(raw.table.column_names)

    @property
    def declared(self) -> list[str] | None:
        """The class names that the first rows declare."""
        return prepare_split(_joined(self._sample, self.name), self.wanted).labels

    def without(self, column: str) -> Stream:
        """Return the same rows without a column."""
        return replace(self, left_out=self.left_out | {column})

    def windows(self, record: int) -> Iterator[Window]:
        """Read window by window, from a record of the source to its end.

        Raises:
            UserError: If bad rows or leaks are refused, by their places.
        """
        for blocks in read_windows(self.parts, record, self.size):
            yield self._prepare(blocks, record)
            record += sum(block.size for block in blocks)

    @cached_property
    def _sample(self) -> list[Block]:
        return next(read_windows(self.parts, self.start, 1), [])

    def _prepare(self, blocks: Sequence[Block], start: int) -> Window:
        wanted, ends = self.wanted, list(accumulate((block.size for block in blocks), initial=start))
        found = prepare_split(_joined(blocks, self.name), wanted)
        split = f"train, rows {start + 1:,} to {ends[-1]:,}"
        notes = {} if not found.unmet else {"filter": found.filtered(split)}
        how = wanted.handling.on_bad_row
        bad = settle(found.problems, found.records, found.problem_place, how, split, whole=False)
        notes |= {} if bad is None else {"bad": bad}
        part = found.part
        fraction = by_split(wanted.fraction, "dataset.fraction")["train"]
        if fraction is not None and fraction < 1:
            part = part.only(fraction_of(part.rows, fraction))
        if self.others is not None and set(self.others.columns) <= set(part.rows.names):
            leaks = self.others.stand_in(part.rows)
            if leaks.any():
                said = settle_leaks({"train": leaks}, lambda _, index: part.place(index), wanted.on_leak)
                notes["leak"] = f"{split}: {said[0]}"
                part = part.only(~leaks) if wanted.on_leak == "drop" else part
        left_out = [name for name in part.rows.names if name in self.left_out]
        table: Dataset = part.rows.dataset().remove_columns(left_out)
        records = np.concatenate([first + block.positions for first, block in zip(ends, blocks, strict=False)])
        return Window(table, start, ends[-1], len(found.problems), records[part.rows.kept], part.place, notes)


def _joined(blocks: Sequence[Block], name: str) -> Raw:
    """Stack blocks; a column that one of them lacks is null there."""
    names = ", ".join(dict.fromkeys(block.source for block in blocks))
    try:
        tables = [block.table for block in blocks] or [pa.table({})]
        table = pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowTypeError as error:
        raise UserError(f"rows with different columns: {str(error).splitlines()[0]}", where=names) from error
    ends = list(accumulate(len(block.table) for block in blocks))
    broken = [(block, number) for block in blocks for number in block.broken]

    def place(row: int) -> str:
        part = bisect_right(ends, row)
        block = blocks[part]
        return block.place(int(block.numbers[row - ends[part]]))

    return Raw(
        table.replace_schema_metadata(None),
        Features({name: kind for block in reversed(blocks) for name, kind in block.features.items()}),
        name=blocks[0].source if blocks else name,
        place=place,
        broken=[block.broken[number] for block, number in broken],
        broken_place=lambda index: broken[index][0].place(broken[index][1]),
    )
