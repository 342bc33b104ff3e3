"""Latency and throughput, interleaved over the models so that a noisy machine does not decide."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

import torch

from distillkit.data.batches import by_length
from distillkit.data.encode import Encoded
from distillkit.signals import Batch, Model

# Each model's turn begins with calls that do not count, until the threads of the model before it have gone idle.
WARM_CALLS, WARM_SECONDS, TIMED_CALLS = 2, 0.02, 3


@dataclass(frozen=True)
class Speed:
    """How fast a model answers.

    Attributes:
        latency_ms: Median milliseconds for one row of median length.
        rows_per_second: Median throughput on batches.
    """

    latency_ms: float
    rows_per_second: float


@torch.no_grad()
def measure_speed(
    models: Mapping[str, Model], data: Encoded, batch_size: int, rounds: int, device: torch.device
) -> dict[str, Speed]:
    """Time every model on the same rows, in turn, for so many rounds after a first one; logits are multiplied out."""
    order = by_length(data.lengths, len(data))[0]
    middle = len(order) // 2
    single = data.batch(order[middle : middle + 1]).to(device)
    start = max(0, middle - batch_size // 2)
    several = data.batch(order[start : start + batch_size]).to(device)
    rows = min(batch_size, len(order) - start)
    seconds: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in models}
    for attempt in range(1 + rounds):
        for name, model in models.items():
            turn = [_time(model, single, device), _time(model, several, device)]
            if attempt > 0:
                for found, times in zip(seconds[name], turn, strict=True):
                    found.extend(times)
    return {
        name: Speed(latency_ms=1000 * median(one), rows_per_second=rows / median(many))
        for name, (one, many) in seconds.items()
    }


def _time(model: Model, batch: Batch, device: torch.device) -> list[float]:
    """Return the seconds of each timed call of one turn."""
    began, warm = time.perf_counter(), 0
    while warm < WARM_CALLS or time.perf_counter() - began < WARM_SECONDS:
        _call(model, batch, device)
        warm += 1
    return [_call(model, batch, device) for _ in range(TIMED_CALLS)]


def _call(model: Model, batch: Batch, device: torch.device) -> float:
    started = time.perf_counter()
    logits = model(batch).logits
    assert logits is not None
    logits.rows(0, len(logits))
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started
