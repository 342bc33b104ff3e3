"""A run that is asked to end finishes its step, leaves a checkpoint, and goes on later as if nothing had happened."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.tiny import classifier, data_files, save

ROOT = Path(__file__).resolve().parents[2]
STEPS = 60


@pytest.fixture(scope="module")
def desk(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("asked")
    data_files(folder / "data")
    save(classifier(layers=1, dropout=0.3), folder / "small")
    return folder


def start(desk: Path, output: str, *more: str) -> subprocess.Popen[str]:
    argv = ["train", "task=sequence_classification", "dataset.path=data", "student.path=small", "task.max_length=32"]
    argv += [f"train.max_steps={STEPS}", "train.batch_size=8", "train.checkpoint_every=1000", "train.log_every=1"]
    argv += ["dataset.cache=false", "train.evaluate_every=1000", f"output_dir={output}", f"name={output}", *more]
    return subprocess.Popen(
        [sys.executable, "-m", "distillkit", *argv],
        cwd=desk,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def ask(desk: Path, process: subprocess.Popen[str], output: str, number: signal.Signals) -> str:
    """Send a signal after the first steps; return what was printed."""
    metrics = desk / output / "metrics.jsonl"
    until = time.monotonic() + 120
    while not (metrics.exists() and metrics.read_text().count("\n") >= 3):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < until
        time.sleep(0.01)
    process.send_signal(number)
    return process.communicate(timeout=120)[0]


@pytest.fixture(scope="module")
def whole(desk: Path) -> bytes:
    process = start(desk, "whole")
    assert process.wait(timeout=120) == 0, process.communicate()[0]
    return (desk / "whole/model/model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 143), (signal.SIGINT, 130)], ids=str
)
def test_the_step_is_finished_and_the_run_goes_on_later(desk: Path, whole: bytes, number: signal.Signals, code: int):
    output = number.name
    process = start(desk, output)
    printed = ask(desk, process, output, number)
    assert process.returncode == code, printed
    assert f"{number.name}: ending after this step and a checkpoint" in printed
    assert "Traceback" not in printed
    [checkpoint] = (desk / output / "checkpoints").glob("step-*")
    assert 3 <= int(checkpoint.name.removeprefix("step-")) < STEPS
    process = start(desk, output)
    printed = process.communicate(timeout=120)[0]
    assert process.returncode == 0
    assert f"resuming from {output}/checkpoints/{checkpoint.name}" in printed
    assert (desk / output / "model/model.safetensors").read_bytes() == whole


def test_two_processes_end_together(desk: Path):
    process = start(desk, "two", "launch.num_processes=2")
    printed = ask(desk, process, "two", signal.SIGTERM)
    assert process.returncode == 143, printed
    assert "Traceback" not in printed
    [checkpoint] = (desk / "two/checkpoints").glob("step-*")
    assert {path.name for path in checkpoint.glob("process-*")} == {"process-0.safetensors", "process-1.safetensors"}
