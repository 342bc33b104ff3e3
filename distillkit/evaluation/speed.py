"""Latency and throughput, interleaved over the models so that a noisy machine does not decide."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

import torch

from distillkit.data.batches import by_length
from distillkit.data.encode import Encoded
from distillkit.signals import Batch, DenseLogits, HeadLogits, Model

WARMUP_ROUNDS = 2


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
    """Time every model on the same rows, in turn, `rounds` times after a warm-up; logits are multiplied out."""
    order = by_length(data.lengths, len(data))[0]
    middle = len(order) // 2
    single = data.batch(order[middle : middle + 1]).to(device)
    start = max(0, middle - batch_size // 2)
    several = data.batch(order[start : start + batch_size]).to(device)
    rows = min(batch_size, len(order) - start)
    seconds: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in models}
    for attempt in range(WARMUP_ROUNDS + rounds):
        for name, model in models.items():
            one, many = _time(model, single, device), _time(model, several, device)
            if attempt >= WARMUP_ROUNDS:
                seconds[name][0].append(one)
                seconds[name][1].append(many)
    return {
        name: Speed(latency_ms=1000 * median(one), rows_per_second=rows / median(many))
        for name, (one, many) in seconds.items()
    }


def _time(model: Model, batch: Batch, device: torch.device) -> float:
    started = time.perf_counter()
    logits = model(batch).logits
    if isinstance(logits, HeadLogits | DenseLogits):
        logits.rows(0, len(logits))
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started
