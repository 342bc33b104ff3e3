"""Latency and throughput, interleaved over the models so that a noisy machine does not decide."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from distillkit.data.batches import by_length
from distillkit.data.encode import Encoded
from distillkit.signals import Batch, Model

# Each model's turn begins with calls that do not count, until the threads of the model before it have gone idle.
# Then calls are timed: three, and of one row, whose spread is reported, up to ten in a quarter of a second.
WARM_CALLS, WARM_SECONDS = 2, 0.02
TIMED_CALLS, SINGLE_CALLS, SINGLE_SECONDS = 3, 10, 0.25


@dataclass(frozen=True)
class Speed:
    """How fast a model answers: one forward pass, logits multiplied out.

    Attributes:
        latency_ms: Median milliseconds for one row of median length.
        latency_p95_ms: The time that 95 of 100 such calls keep.
        rows_per_second: Rows of a batch → median throughput.
    """

    latency_ms: float
    latency_p95_ms: float
    rows_per_second: dict[int, float]


@torch.no_grad()
def measure_speed(
    models: Mapping[str, Model],
    data: Mapping[str, Encoded],
    batch_sizes: Sequence[int],
    rounds: int,
    device: torch.device,
) -> dict[str, Speed]:
    """Time every model on its rows, in turn, for so many rounds after a first one.

    Batches hold the rows around the median length; where there are fewer rows than a batch wants, all of them.
    """
    orders = {name: by_length(rows.lengths, len(rows))[0] for name, rows in data.items()}
    batches = {
        name: {size: _middle(data[name], order, size).to(device) for size in (1, *batch_sizes)}
        for name, order in orders.items()
    }
    seconds: dict[str, dict[int, list[float]]] = {name: {size: [] for size in (1, *batch_sizes)} for name in models}
    for attempt in range(1 + rounds):
        for name, model in models.items():
            for size, batch in batches[name].items():
                times = _time(model, batch, device, SINGLE_CALLS if size == 1 else TIMED_CALLS)
                if attempt > 0:
                    seconds[name][size].extend(times)
    found = {}
    for name, by_size in seconds.items():
        half, most = np.quantile(by_size[1], [0.5, 0.95])
        rows = {size: min(size, len(orders[name])) / float(np.median(by_size[size])) for size in batch_sizes}
        found[name] = Speed(1000 * float(half), 1000 * float(most), rows)
    return found


def _middle(data: Encoded, order: np.ndarray, size: int) -> Batch:
    start = max(0, min(len(order) // 2 - size // 2, len(order) - size))
    return data.batch(order[start : start + size])


def _time(model: Model, batch: Batch, device: torch.device, calls: int) -> list[float]:
    """Return the seconds of each timed call of one turn."""
    began, warm = time.perf_counter(), 0
    while warm < WARM_CALLS or time.perf_counter() - began < WARM_SECONDS:
        _call(model, batch, device)
        warm += 1
    times: list[float] = []
    while len(times) < TIMED_CALLS or (len(times) < calls and sum(times) < SINGLE_SECONDS):
        times.append(_call(model, batch, device))
    return times


def _call(model: Model, batch: Batch, device: torch.device) -> float:
    started = time.perf_counter()
    logits = model(batch).logits
    assert logits is not None
    logits.rows(0, len(logits))
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started
