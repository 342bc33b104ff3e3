"""Early stopping: when a run has gone long enough without getting better, across a resume too."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import pytest

from distillkit.training.checkpoint import newest_checkpoint
from distillkit.training.loop import fit
from distillkit.training.run import FitResult
from distillkit.training.stopping import Patience
from tests.tiny import classifier, encoded, events, training


def waited(values: Iterable[float], higher: bool = True, min_delta: float = 0.0) -> list[int]:
    patience, seen = Patience(), []
    for value in values:
        patience.see(value, higher, min_delta)
        seen.append(patience.waited)
    return seen


def test_evaluations_that_are_not_better_are_counted():
    assert waited([0.5, 0.6, 0.6, 0.5, 0.7, 0.6]) == [0, 0, 1, 2, 0, 1]
    assert waited([0.5, 0.6, 0.4, 0.4, 0.3], higher=False) == [0, 1, 0, 1, 0]


def test_small_steps_add_up_to_an_improvement():
    """Better is what exceeds the last improvement by more than min_delta, not the last evaluation."""
    assert waited([0.5, 0.625, 0.75, 0.875], min_delta=0.125) == [0, 1, 0, 1]
    assert waited([2.0, 1.9, 1.8, 1.7], higher=False, min_delta=0.15) == [0, 1, 0, 1]


def test_what_is_no_number_is_no_improvement():
    assert waited([math.nan, 0.5, math.nan, 0.6]) == [1, 0, 1, 0]


class Killed(Exception):
    pass


def run_with(folder: Path, qualities: list[float], resume: bool = False, **settings) -> FitResult:
    """Evaluate every second step; the quality of each step is given."""
    student = classifier(layers=1)
    data = encoded(folder / "data", student.task)
    common = {"max_steps": 12, "evaluate_every": 2, "log_every": 3, "checkpoint_every": 3, "keep_checkpoints": 9}
    run = training(folder, student, classifier(layers=1, seed=7), data, **common | settings)
    if resume:
        run.resume_from, _ = newest_checkpoint(folder / "checkpoints")
        assert run.resume_from is not None
        run.records.rewind(int(run.resume_from.name.removeprefix("step-")))
    steps = iter(range(2 if not resume else 8, 13, 2))

    def quality(model: object) -> dict[str, float]:
        value = qualities[next(steps) // 2 - 1]
        if value < 0:
            raise Killed
        return {"accuracy": value}

    run.evaluate = quality
    return fit(run)


QUALITIES = [0.5, 0.7, 0.6, 0.7, 0.9, 0.9]


def test_a_run_stops_when_its_patience_is_at_an_end(tmp_path):
    result = run_with(tmp_path, QUALITIES, patience=2)
    assert (result.steps, result.stopped_early, result.best_step, result.best_value) == (8, True, 4, 0.7)
    lines = events(tmp_path)
    assert [line["step"] for line in lines if line["event"] == "evaluate"] == [2, 4, 6, 8]
    assert [line["step"] for line in lines if line["event"] == "train"] == [3, 6, 8]  # nothing is left unlogged
    assert sum(line["items"] for line in lines if line["event"] == "train") == result.items == 64


def test_a_run_that_gets_better_goes_on_to_the_end(tmp_path):
    result = run_with(tmp_path, QUALITIES, patience=3)
    assert (result.steps, result.stopped_early, result.best_step) == (12, False, 10)
    assert run_with(tmp_path / "never", [0.9] * 6).steps == 12
    assert run_with(tmp_path / "delta", QUALITIES, patience=3, min_delta=0.3).steps == 8


def test_patience_is_remembered_across_a_resume(tmp_path):
    expected = run_with(tmp_path / "whole", QUALITIES, patience=2)
    with pytest.raises(Killed):
        run_with(tmp_path / "cut", [0.5, 0.7, 0.6, -1.0], patience=2)
    result = run_with(tmp_path / "cut", QUALITIES, resume=True, patience=2)  # from step 6, with one wait behind it
    assert (result.steps, result.stopped_early, result.best_step) == (8, True, expected.best_step)
    assert events(tmp_path / "cut") == events(tmp_path / "whole")
