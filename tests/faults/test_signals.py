"""A run that is asked to end finishes its step, leaves a checkpoint, and goes on later as if nothing had happened."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.nursery import Child, Nursery
from tests.tiny import classifier, data_files, save

STEPS = 60


@pytest.fixture(scope="module")
def desk(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("asked")
    data_files(folder / "data")
    save(classifier(layers=1, dropout=0.3), folder / "small")
    return folder


def start(nursery: Nursery, desk: Path, output: str, *more: str) -> Child:
    argv = ["train", "task=sequence_classification", "dataset.path=data", "student.path=small", "task.max_length=32"]
    argv += [f"train.max_steps={STEPS}", "train.batch_size=8", "train.checkpoint_every=1000", "train.log_every=1"]
    argv += ["dataset.cache=false", "train.evaluate_every=1000", f"output_dir={output}", f"name={output}", *more]
    return nursery.start(argv, desk)


def ask(desk: Path, child: Child, output: str, number: signal.Signals) -> int:
    """Send a signal after the first steps; return the exit code."""
    metrics = desk / output / "metrics.jsonl"
    until = time.monotonic() + 120
    while not (metrics.exists() and metrics.read_text().count("\n") >= 3):
        assert child.poll() is None, child.out + child.err
        assert time.monotonic() < until
        time.sleep(0.01)
    os.kill(child.pid, number)
    return child.wait()


@pytest.fixture(scope="module")
def whole(nursery: Nursery, desk: Path) -> bytes:
    child = start(nursery, desk, "whole")
    assert child.wait() == 0, child.err
    return (desk / "whole/model/model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 143), (signal.SIGINT, 130)], ids=str
)
def test_the_step_is_finished_and_the_run_goes_on_later(
    nursery: Nursery, desk: Path, whole: bytes, number: signal.Signals, code: int
):
    output = number.name
    child = start(nursery, desk, output)
    assert ask(desk, child, output, number) == code, child.err
    assert f"{number.name}: ending after this step and a checkpoint" in child.out
    assert "Traceback" not in child.err
    [checkpoint] = (desk / output / "checkpoints").glob("step-*")
    assert 3 <= int(checkpoint.name.removeprefix("step-")) < STEPS
    child = start(nursery, desk, output)
    assert child.wait() == 0, child.err
    assert f"resuming from {output}/checkpoints/{checkpoint.name}" in child.out
    assert (desk / output / "model/model.safetensors").read_bytes() == whole


def test_two_processes_end_together(nursery: Nursery, desk: Path):
    child = start(nursery, desk, "two", "launch.num_processes=2")
    assert ask(desk, child, "two", signal.SIGTERM) == 143, child.err
    assert "Traceback" not in child.err
    [checkpoint] = (desk / "two/checkpoints").glob("step-*")
    assert {path.name for path in checkpoint.glob("process-*")} == {"process-0.safetensors", "process-1.safetensors"}
