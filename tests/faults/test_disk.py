"""A disk that takes no more ends a run with one line; with room again, the same command finishes it."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import classifier, data_files, save

ROOT = Path(__file__).resolve().parents[2]


def train(desk: Path, output: str, most: int | None, *more: str) -> subprocess.CompletedProcess[str]:
    """Train in a process whose files may not grow beyond `most` bytes."""
    argv = ["train", "task=sequence_classification", "dataset.path=data", "student.path=small", "task.max_length=32"]
    argv += ["train.max_steps=6", "train.batch_size=8", "dataset.cache=false", f"output_dir={output}", *more]

    def limit() -> None:
        if most is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

    return subprocess.run(
        [sys.executable, "-m", "distillkit", *argv],
        cwd=desk,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=limit,
        timeout=300,
    )


@pytest.fixture(scope="module")
def desk(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("disk")
    data_files(folder / "data")
    save(classifier(layers=1), folder / "small")
    return folder


@pytest.mark.parametrize("checkpoints", ["train.checkpoint_every=2", "train.checkpoint_every=null"])
def test_the_same_command_goes_on_once_there_is_room(desk: Path, checkpoints: str):
    output = checkpoints.replace("=", "_")
    size = (desk / "small/model.safetensors").stat().st_size
    stopped = train(desk, output, size // 2, checkpoints)
    assert stopped.returncode == 2, stopped.stderr
    [line] = stopped.stderr.splitlines()
    assert line.startswith("distillkit: error: ")
    assert "File too large" in line
    assert line.endswith("make room or choose another output_dir; the same command goes on from there")
    assert not (desk / output / "model").exists()
    assert not list((desk / output).glob("checkpoints/step-*"))
    done = train(desk, output, None, checkpoints)
    assert done.returncode == 0, done.stderr
    assert (desk / output / "model/model.safetensors").exists()
    assert not list((desk / output).rglob("*partial*"))
