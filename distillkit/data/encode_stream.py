"""Encode a stream while training goes on: one window is trained on, and the next one is made in the background."""

from __future__ import annotations

import copy
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from distillkit.data.batches import shuffled
from distillkit.data.encode import Counts, Encoded, encode, say_losses
from distillkit.data.encode_window import EncodedWindow, WindowEncoder
from distillkit.data.encoder import Encoder
from distillkit.data.plans import Place
from distillkit.data.rows import Rows, Stream
from distillkit.errors import UserError
from distillkit.reporting.console import notice
from distillkit.schema import TrainSettings
from distillkit.signals import Batch
from distillkit.tasks.base import Task


@dataclass
class EncodedStream:
    """Training rows that are encoded window by window.

    Attributes:
        rows: The stream.
        encode: Encodes a window.
        first: The first window.
        packed: Whether several texts share a row of a batch.
        counts: What became of the rows that a run has read, until the stream began anew.
    """

    rows: Stream
    encode: WindowEncoder
    first: EncodedWindow
    packed: bool = False
    counts: Counts = field(default_factory=Counts)

    def batch(self, indices: Sequence[int] | np.ndarray, draw: tuple[int, ...] = ()) -> Batch:
        """Collate rows of the first window."""
        return replace(self.first.data, packed=self.packed).batch(indices, draw)

    def describe(self) -> str:
        """Say how much there is."""
        return f"a stream of rows, {self.first.end - self.first.start:,} at a time"

    def summary(self) -> str:
        """Say what became of the rows that were read."""
        counts = self.counts
        cut = f"{counts.truncated:,} longer than task.max_length and cut"
        return f"train: {counts.rows:,} rows read, {counts.bad:,} skipped, {counts.left_out:,} left out, {cut}"

    def packing(self) -> EncodedStream:
        """Return the same rows, of which several texts share a row of a batch."""
        return replace(self, packed=True)

    def plan(self, settings: TrainSettings) -> StreamPlan:
        """Plan the batches of a run.

        Raises:
            UserError: If they do not suit a stream.
        """
        check_stream(self.rows, settings)
        return StreamPlan(self, settings)


def check_stream(rows: Stream, settings: TrainSettings) -> None:
    """Refuse to train for a number of epochs, since nobody knows how many rows there are; and windows below a batch."""
    if settings.max_steps is None:
        what = "a stream does not tell how many steps an epoch has"
        raise UserError(what, where="train.max_steps", fix="say for how many steps to train: train.max_steps=N")
    if rows.size < settings.batch_size:
        what = f"{rows.size} rows are less than a batch of {settings.batch_size}"
        raise UserError(what, where="dataset.window", fix="make it many times train.batch_size")


def encode_training(rows: Rows, task: Task, tokenizer: Any, labels: list[str] | None) -> Encoded | EncodedStream:
    """Encode the training rows of a dataset; of a stream, the first window.

    Args:
        rows: The dataset.
        task: How rows are encoded and collated; see `Task.encode`.
        tokenizer: A transformers tokenizer.
        labels: Class names in the order of their ids; None for tasks without classes.

    Raises:
        UserError: If bad rows are refused, with their files and lines; or if nothing is left of the window.
    """
    stream = rows.stream
    if stream is None:
        return encode(rows, "train", task, tokenizer, labels)
    encoder = Encoder.of(task, copy.deepcopy(tokenizer), labels)
    columns, how = frozenset(stream.first.table.column_names), rows.handling.on_bad_row
    encode_window = WindowEncoder(encoder, lambda batch: task.collate(batch, tokenizer), labels, how, columns)
    first = encode_window(stream.first)
    if not len(first.data):
        raise UserError(f"no row of the first {first.end:,} is long enough to learn from", where="dataset")
    if "unusable" in first.notes:
        notice(first.notes["unusable"])
    say_losses(first.data.counts, stream.first.name)
    return EncodedStream(stream, encode_window, first)


@dataclass(frozen=True)
class Standing:
    """A window in a run.

    Attributes:
        data: The rows of the window.
        batches: Its batches.
        begin: Where it begins.
        end: Where the next one begins.
    """

    data: Encoded
    batches: list[np.ndarray]
    begin: Place
    end: Place


class StreamPlan:
    """The global batches of a run over a stream.

    A window is shuffled and cut as `BatchPlan` does it with a whole split, and its batches follow those of the window
    before. After the last window the stream begins anew and is shuffled in another way. How many batches a window
    gives is known when it is encoded, so a run that resumes has to be told where its step stands: see `place`.

    Args:
        stream: Of rows.
        settings: Of the run.
    """

    steps_per_epoch = 0  # not known

    def __init__(self, stream: EncodedStream, settings: TrainSettings) -> None:
        self.stream = stream
        self.settings = settings
        self.steps = settings.max_steps or 0
        self._shown = set(stream.first.notes)
        self._start = Place(0, 0, stream.rows.start, Counts())
        self._standings: list[Standing] = []  # the newest last
        self._background = ThreadPoolExecutor(1)
        self._coming: Generator[tuple[int, EncodedWindow], None, None] | None = None
        self._pending: Future[tuple[int, EncodedWindow]] | None = None

    def start(self, place: Place | None) -> None:
        """Begin at a place that `place` returned; None for the beginning."""
        self._start = place or self._start

    def rows(self, step: int) -> tuple[Encoded, np.ndarray]:
        """Return a window and the indices of a step's rows in it; steps are asked for in their order."""
        while (standing := self._find(step)) is None:
            self._advance()
        return standing.data, standing.batches[step - standing.begin.step]

    def epoch(self, step: int) -> float:
        """Return how often the stream had begun anew when a step was done, of those that were asked for last."""
        standing = self._find(step - 1)
        assert standing is not None
        return float(standing.begin.epoch)

    def place(self, step: int) -> Place:
        """Return where a step stands, of those that were asked for last, or the one after."""
        standing = self._find(step)
        return standing.begin if standing is not None else self._standings[-1].end

    def close(self) -> None:
        """Stop reading."""
        self._background.shutdown(cancel_futures=True)
        if self._coming is not None:
            self._coming.close()

    def _find(self, step: int) -> Standing | None:
        found = (standing for standing in self._standings if standing.begin.step <= step < standing.end.step)
        return next(found, None)

    def _advance(self) -> None:
        """Take the next window, and have the one after it read and encoded in the background."""
        begin = self._standings[-1].end if self._standings else self._start
        if self._coming is None:
            self._coming = self._windows(begin)
        epoch, window = next(self._coming) if self._pending is None else self._pending.result()
        seed = (self.settings.seed, epoch, window.start)
        grouped = self.settings.group_by_length and not self.stream.packed
        batches = shuffled(window.data.lengths, self.settings.batch_size, seed, grouped)
        begin = replace(begin, epoch=epoch, record=window.start)
        counts = begin.counts + window.data.counts if epoch == 0 else begin.counts
        end = Place(begin.step + len(batches), epoch, window.end, counts)
        data = replace(window.data, packed=self.stream.packed)
        kept = [standing for standing in self._standings if standing.batches][-1:]
        self._standings = [*kept, Standing(data, batches, begin, end)]
        self.stream.counts = counts
        for subject in window.notes.keys() - self._shown:
            notice(window.notes[subject])
            self._shown.add(subject)
        self._pending = self._background.submit(next, self._coming) if end.step < self.steps else None

    def _windows(self, place: Place) -> Generator[tuple[int, EncodedWindow], None, None]:
        """Yield epoch and window from a place on, without an end."""
        first, rows = self.stream.first, self.stream.rows
        epoch, record = place.epoch, place.record
        if (epoch, record) == (0, first.start):
            yield 0, first
            record = first.end
        while True:
            for window in rows.windows(record):
                yield epoch, self.stream.encode(window)
            epoch, record = epoch + 1, rows.start
