"""Peak memory is plausible and fair; latency and throughput come from all rounds, in turn."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from distillkit.evaluation import speed
from distillkit.evaluation.memory import Memory, measure_memory
from distillkit.evaluation.speed import measure_speed
from distillkit.signals import Batch, DenseLogits, Signal
from distillkit.tasks.sequence_classification import SequenceClassification
from tests.tiny import encoded

MB = 2**20


class Hoarder:
    """A model with so many megabytes of weights, which needs as many again for a moment to answer."""

    def __init__(self, weights: int, scratch: int) -> None:
        self.weights = torch.ones(weights * MB // 4)
        self.scratch = scratch

    def __call__(self, batch: Batch) -> Signal:
        torch.ones(self.scratch * MB // 4).sum()
        return Signal(DenseLogits(torch.zeros(int(batch.counted.sum()), 2)))


def broken() -> Hoarder:
    raise ValueError("no such model")


def test_peak_memory_is_what_a_model_needs(tmp_path):
    batch = encoded(tmp_path, SequenceClassification()).batch(range(4))
    loaders = {
        "small": partial(Hoarder, 1, 1),
        "weights": partial(Hoarder, 200, 1),
        "scratch": partial(Hoarder, 1, 200),
        "again": partial(Hoarder, 1, 1),
        "broken": broken,
    }
    found = measure_memory(loaders, dict.fromkeys(loaders, batch))
    assert found.pop("broken") == "ValueError: no such model"
    assert all(isinstance(value, Memory) for value in found.values()), found
    small = found["small"].bytes
    assert small < 40 * MB
    for name in ("weights", "scratch"):
        assert found[name].bytes - small == pytest.approx(199 * MB, abs=8 * MB)
        assert found[name].process_bytes > found[name].bytes
    assert found["again"].bytes == pytest.approx(small, abs=8 * MB)  # the ones before left nothing


class Clock:
    """A model whose calls take a known time: the row count in milliseconds, times a factor for each call."""

    def __init__(self, clock: list[float], factors: list[float]) -> None:
        self.clock = clock
        self.factors = factors
        self.calls = 0

    def __call__(self, batch: Batch) -> Signal:
        rows = int(batch.counted.sum())
        self.clock[0] += rows * self.factors[self.calls % len(self.factors)] / 1000
        self.calls += 1
        return Signal(DenseLogits(torch.zeros(rows, 2)))


def test_latency_and_throughput(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(speed.time, "perf_counter", lambda: clock[0])
    data = encoded(tmp_path, SequenceClassification(), count=20)
    models = {"steady": Clock(clock, [2.0]), "uneven": Clock(clock, [1.0] * 9 + [50.0])}
    found = measure_speed(models, dict.fromkeys(models, data), [4, 32], 3, torch.device("cpu"))
    assert found["steady"].latency_ms == pytest.approx(2.0)
    assert found["steady"].latency_p95_ms == pytest.approx(2.0)
    assert found["steady"].rows_per_second == pytest.approx({4: 500.0, 32: 500.0})
    assert found["uneven"].latency_ms == pytest.approx(1.0)
    assert found["uneven"].latency_p95_ms > 10
