"""Encode rows piece by piece into Arrow tables: in this process, whose tokenizer has threads, or in several."""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from distillkit.tasks.base import Task

PIECE = 1000  # rows
ROWS_PER_WORKER = 100_000  # below, starting a process (seconds) costs more than it gains
FEWEST_CORES = 4  # with fewer, the tokenizer's threads keep them all busy
MOST_WORKERS = 16


@dataclass(frozen=True)
class Encoder:
    """What turns rows into encoded rows."""

    task: Task
    tokenizer: Any
    label_ids: dict[str, int] | None

    @classmethod
    def of(cls, task: Task, tokenizer: Any, labels: list[str] | None) -> Encoder:
        """Make it for class names in the order of their ids; None for tasks without classes."""
        return cls(task, tokenizer, None if labels is None else {name: index for index, name in enumerate(labels)})

    def __call__(self, rows: dict[str, list[Any]], indices: list[int]) -> Piece:
        """Encode some rows, which are those of `indices` in their split."""
        columns = dict(self.task.encode(rows, self.tokenizer, self.label_ids))
        bad = {indices[index]: reason for index, reason in columns.pop("bad", [])}
        truncated = columns.pop("truncated", None)
        origins = columns.pop("row", None)
        count = len(next(iter(columns.values()), []))
        if origins is None and count == len(indices):
            origins = list(range(count))
        if origins is None and bad:
            raise ValueError(f"{self.task.name} names bad rows, but not which row each encoded row was made of")
        columns["length"] = columns.get("length") or [len(ids) for ids in columns.get("input_ids") or [[0]] * count]
        if origins is not None:
            columns["row"] = [indices[origin] for origin in origins]
        table = _table(columns)
        if bad:
            kept = np.flatnonzero([origin not in bad for origin in columns["row"]])
            table = table.take(kept)
            truncated = None if truncated is None else [truncated[index] for index in kept]
        sources = table["row"].to_pylist() if origins is not None else list(range(table.num_rows))
        cut = {source for source, is_cut in zip(sources, truncated, strict=True) if is_cut} if truncated else set()
        lost = len(indices) - len(bad) - len(set(sources)) if origins is not None else 0
        return Piece(table, bad, lost, len(cut))


@dataclass(frozen=True)
class Piece:
    """Some encoded rows.

    Attributes:
        table: Their columns, with `length` and, where it is known, `row`.
        bad: Index in the split → reason, of the rows that cannot be used.
        left_out: Other rows that gave nothing.
        truncated: Rows of which something was cut off.
    """

    table: pa.Table
    bad: dict[int, str]
    left_out: int
    truncated: int


def encode_pieces(encoder: Encoder, table: Dataset, good: np.ndarray, workers: int | None) -> Iterator[Piece]:
    """Encode the rows of `good`, in their order.

    Args:
        encoder: For all of them.
        table: The split.
        good: int `[rows]`: which rows.
        workers: Processes; 0 or 1: this one; None: as many as pay.
    """
    workers = pick_workers(len(good)) if workers is None else workers
    pieces = [good[start : start + PIECE] for start in range(0, len(good), PIECE)]
    tasks = ((_rows(table, indices), indices.tolist()) for indices in pieces)
    if workers <= 1:
        yield from (encoder(rows, indices) for rows, indices in tasks)
        return
    context = multiprocessing.get_context("spawn")  # a forked process would hold this one's threads and GPU half
    with ProcessPoolExecutor(workers, context, _start_worker, (encoder,)) as pool:
        yield from _in_order(pool, tasks, ahead=4 * workers)


def pick_workers(rows: int) -> int:
    """Return how many processes are worth starting for so many rows."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(rows // ROWS_PER_WORKER, cores, MOST_WORKERS) if cores >= FEWEST_CORES else 0


def _in_order(pool: ProcessPoolExecutor, tasks: Iterable[Any], ahead: int) -> Iterator[Piece]:
    """Yield results in the order of the tasks, of which at most `ahead` are under way."""
    under_way: deque[Future[Piece]] = deque()
    for task in tasks:
        under_way.append(pool.submit(_work, *task))
        if len(under_way) >= ahead:
            yield under_way.popleft().result()
    while under_way:
        yield under_way.popleft().result()


_encoder: Encoder | None = None  # of a worker process


def _start_worker(encoder: Encoder) -> None:
    global _encoder
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    _encoder = encoder


def _work(rows: dict[str, list[Any]], indices: list[int]) -> Piece:
    assert _encoder is not None
    return _encoder(rows, indices)


def _rows(table: Dataset, indices: np.ndarray) -> dict[str, list[Any]]:
    first, last = int(indices[0]), int(indices[-1])
    together = last - first + 1 == len(indices)
    return table[first : last + 1] if together else table[indices.tolist()]


def _table(columns: dict[str, Any]) -> pa.Table:
    return pa.table({name: _narrow(pa.array(values)) for name, values in columns.items()})


def _narrow(values: pa.Array) -> pa.Array:
    """Store lists of token ids in half the space."""
    if not (pa.types.is_list(values.type) and pa.types.is_int64(values.type.value_type)):
        return values
    ends = pc.min_max(values.flatten())
    fits = ends["max"].as_py() is None or (ends["min"].as_py() >= -(1 << 31) and ends["max"].as_py() < 1 << 31)
    return values.cast(pa.list_(pa.int32())) if fits else values
