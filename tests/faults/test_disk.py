"""A disk that takes no more ends a run with one line; with room again, the same command finishes it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.nursery import Child, Nursery
from tests.tiny import classifier, data_files, save


@pytest.fixture(scope="module")
def desk(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("disk")
    data_files(folder / "data")
    save(classifier(layers=1), folder / "small")
    return folder


def train(nursery: Nursery, desk: Path, output: str, most: int | None, *more: str) -> Child:
    """Train in a process whose files may not grow beyond `most` bytes."""
    argv = ["train", "task=sequence_classification", "dataset.path=data", "student.path=small", "task.max_length=32"]
    argv += ["train.max_steps=6", "train.batch_size=8", "dataset.cache=false", f"output_dir={output}", *more]
    return nursery.start(argv, desk, most)


@pytest.mark.parametrize("checkpoints", ["train.checkpoint_every=2", "train.checkpoint_every=null"])
def test_the_same_command_goes_on_once_there_is_room(nursery: Nursery, desk: Path, checkpoints: str):
    output = checkpoints.replace("=", "_")
    size = (desk / "small/model.safetensors").stat().st_size
    stopped = train(nursery, desk, output, size // 2, checkpoints)
    assert stopped.wait() == 2, stopped.err
    [line] = stopped.err.splitlines()
    assert line.startswith("distillkit: error: ")
    assert "File too large" in line
    assert line.endswith("make room or choose another output_dir; the same command goes on from there")
    assert not (desk / output / "model").exists()
    assert not list((desk / output).glob("checkpoints/step-*"))
    done = train(nursery, desk, output, None, checkpoints)
    assert done.wait() == 0, done.err
    assert (desk / output / "model/model.safetensors").exists()
    assert not list((desk / output).rglob("*partial*"))
