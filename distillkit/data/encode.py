"""Encode the rows of a split once, for one task and one tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from datasets import Dataset

from distillkit.data.bad_rows import settle
from distillkit.data.cache import TableWriter, cache_folder, cached
from distillkit.data.checks import check_columns, find_bad_rows
from distillkit.data.digest import digest, rows_digest, task_digest, tokenizer_digest
from distillkit.data.encoder import Encoder, Piece, encode_pieces
from distillkit.data.packing import pack
from distillkit.data.plans import SplitPlan
from distillkit.data.rows import Rows
from distillkit.data.selection import all_but
from distillkit.errors import UserError
from distillkit.reporting.console import notice
from distillkit.schema import TrainSettings
from distillkit.signals import Batch, Signal
from distillkit.tasks.base import Task


@dataclass(frozen=True)
class Counts:
    """What became of the rows of a split.

    Attributes:
        rows: Rows of the split.
        encoded: Encoded rows that came of them.
        bad: Rows that were skipped because something is wrong with them.
        left_out: Rows that gave nothing to learn from.
        truncated: Rows of which something was cut off.
    """

    rows: int = 0
    encoded: int = 0
    bad: int = 0
    left_out: int = 0
    truncated: int = 0

    def __add__(self, other: Counts) -> Counts:
        """Count the rows of both."""
        ours, theirs = asdict(self), asdict(other)
        return Counts(**{name: ours[name] + theirs[name] for name in ours})


@dataclass(frozen=True)
class Encoded:
    """Encoded rows that turn into batches by their indices; they lie in a file that is memory-mapped.

    Attributes:
        rows: The encoded rows.
        lengths: int64 `[rows]`: tokens of each.
        collate: Encoded rows → batch.
        counts: What became of the rows of the split.
        packed: Whether several texts share a row of a batch.
        said: Indices and their batch → what a teacher store holds about these rows. What is random about a row is then
            what it was when the teacher was asked.
    """

    rows: Dataset
    lengths: np.ndarray
    collate: Callable[[list[dict[str, Any]]], Batch]
    counts: Counts = field(default_factory=Counts)
    packed: bool = False
    said: Callable[[np.ndarray, Batch], Signal] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def describe(self) -> str:
        """Say how much there is."""
        return f"{len(self):,} rows, {int(self.lengths.sum()):,} tokens"

    def packing(self) -> Encoded:
        """Return the same rows, of which several texts share a row of a batch."""
        return replace(self, packed=True)

    def plan(self, settings: TrainSettings) -> SplitPlan:
        """Plan the batches of a run."""
        return SplitPlan(self, settings)

    @property
    def origins(self) -> np.ndarray:
        """int64 `[rows]`: the index in the split of the row that each was made of."""
        return np.asarray(self.rows.with_format("arrow")[:]["row"].to_numpy(), dtype=np.int64)

    def batch(self, indices: Sequence[int] | np.ndarray, draw: tuple[int, ...] = ()) -> Batch:
        """Collate the given rows.

        Args:
            indices: Which.
            draw: In training the run's seed and the step, so that what is random about a row is drawn anew.
        """
        columns = self.rows[[int(index) for index in indices]]
        values = zip(*columns.values(), strict=True)
        rows = [dict(zip(columns, row, strict=True)) for row in values]
        draw = () if self.said is not None else draw
        batch = self.collate([row | {"draw": (*draw, int(i))} for row, i in zip(rows, indices, strict=True)])
        if self.said is not None:
            batch = replace(batch, said=self.said(np.asarray(indices), batch))
        return pack(batch) if self.packed else batch


def encode(rows: Rows, split: str, task: Task, tokenizer: Any, labels: list[str] | None) -> Encoded:
    """Encode one split, or take it from the cache, and say what became of its rows.

    The cache knows rows by their content, the tokenizer by all that it saves, the task by its settings and code.

    Args:
        rows: The dataset.
        split: Which of its splits.
        task: How rows are encoded and collated; see `Task.encode`.
        tokenizer: A transformers tokenizer.
        labels: Class names in the order of their ids; None for tasks without classes.

    Raises:
        UserError: If bad rows are refused, with their files and lines; or if nothing is left.
    """
    table = rows.split(split)
    check_columns(rows, task)
    report = partial(_report_bad, rows, split, len(table))
    bad = find_bad_rows(table, task, labels)
    report(bad)
    good = all_but(bad, len(table))
    encoder = Encoder.of(task, tokenizer, labels)

    def make(writer: TableWriter) -> dict[str, Any]:
        left_out, truncated = 0, 0
        unusable: dict[int, str] = {}
        for piece in encode_pieces(encoder, table, good, rows.handling.num_workers):
            unusable |= piece.bad
            if piece.bad and rows.handling.on_bad_row == "refuse":
                report(unusable, exact=False)
            _write(writer, piece)
            left_out += piece.left_out
            truncated += piece.truncated
        return {"left_out": left_out, "truncated": truncated, "bad": list(unusable.items())}

    folder, key = cache_folder(rows.handling.cache), ""
    if folder is not None:
        parts = (rows_digest(table), tokenizer_digest(tokenizer), task_digest(task))
        key = digest(*parts, labels, rows.handling.on_bad_row)
    encoded, facts = cached(folder, key, make)
    unusable = dict(facts["bad"])
    report(unusable)
    if encoded.num_rows == 0:
        raise UserError(f"no row of the {split} split of '{rows.name}' is long enough to learn from", where="dataset")
    counts = Counts(
        rows=len(table),
        encoded=encoded.num_rows,
        bad=len(bad) + len(unusable),
        left_out=facts["left_out"],
        truncated=facts["truncated"],
    )
    say_losses(counts, split)
    lengths = encoded["length"].to_numpy().astype(np.int64)
    kept = Dataset(encoded.drop_columns(["length"]), fingerprint=key or "encoded")
    return Encoded(kept, lengths, lambda batch: task.collate(batch, tokenizer), counts)


def _write(writer: TableWriter, piece: Piece) -> None:
    if piece.table.num_rows:
        writer.write(piece.table)


def _report_bad(rows: Rows, split: str, count: int, bad: dict[int, str], exact: bool = True) -> None:
    note = settle(bad, count, partial(rows.where, split), rows.handling.on_bad_row, split, exact)
    if note is not None:
        notice(note)


def say_losses(counts: Counts, split: str) -> None:
    """Say how many rows were left out or cut, if any."""
    if counts.left_out:
        why = "too short to learn from, or no room for an answer within task.max_length"
        notice(f"{split}: {counts.left_out:,} of {counts.rows:,} rows left out: {why}")
    if counts.truncated:
        share = counts.truncated / counts.rows
        notice(f"{split}: {share:.1%} of the rows are longer than task.max_length and were cut ({counts.truncated:,})")
