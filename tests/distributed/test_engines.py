"""1, 2 and 4 processes (gloo) come to the same with every loss, on DDP and on FSDP 2, with and without accumulation."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed

from distillkit.training.checkpoint import newest_checkpoint
from distillkit.training.records import flat
from tests.distributed.group import CASES

ROOT = Path(__file__).resolve().parents[2]
GROUPS = [(2, "ddp"), (2, "fsdp"), (4, "ddp"), (4, "fsdp")]

pytestmark = pytest.mark.skipif(not distributed.is_gloo_available(), reason="needs gloo")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("groups")
    done = subprocess.run(
        [sys.executable, "-m", "tests.distributed.group", str(folder)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, dict]:
    return {name: torch.load(folder / name / "found.pt") for name in ("1", "2", "4", "again")}


def check(ours: dict[str, Tensor], exact: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    """No number is off by more than that share of the largest of them all."""
    assert ours.keys() == exact.keys()
    largest = max(tensor.abs().max() for tensor in exact.values())
    assert largest > 0
    for name, tensor in exact.items():
        assert (ours[name] - tensor).abs().max() <= tolerance * largest, name


@pytest.mark.parametrize(("processes", "engine"), GROUPS)
@pytest.mark.parametrize("case", CASES)
def test_the_number_of_processes_changes_nothing(found, case, processes, engine):
    one, ours = found["1"][f"{case}-ddp"], found[str(processes)][f"{case}-{engine}"]
    check(ours["gradients"], one["gradients"])
    check(ours["weights"], one["weights"])
    assert [event["event"] for event in ours["events"]] == [event["event"] for event in one["events"]]
    assert one["events"]
    for our, their in zip(ours["events"], one["events"], strict=True):
        assert flat(our) == pytest.approx(flat(their), rel=1e-5, abs=1e-6)


def test_shards_in_half_precision_stay_close_to_the_whole(found):
    """A layer is gathered in it; without shards it is rounded matrix product by matrix product."""
    exact = [event["loss"] for event in found["1"]["tied-ddp"]["events"] if event["event"] == "train"]
    for name in ("1", "2"):
        losses = [event["loss"] for event in found[name]["bf16"]["events"] if event["event"] == "train"]
        assert losses == pytest.approx(exact, rel=0.02)
        assert losses != exact
    check(found["2"]["bf16"]["gradients"], found["1"]["bf16"]["gradients"], 0.05)


def test_a_checkpoint_is_read_by_any_number_of_processes(found):
    """From 1 whole to 2 shards, from 2 shards (written in the background) to 4, and from 4 to 1 whole."""
    one = found["1"]["chain"]
    for name, steps in (("2", 6), ("4", 4), ("again", 2)):
        check(found[name]["chain"]["weights"], one["weights"])
        losses = [event["loss"] for event in found[name]["chain"]["events"] if event["event"] == "train"]
        expected = [event["loss"] for event in one["events"] if event["event"] == "train"]
        assert losses == pytest.approx(expected[-steps:], rel=1e-5)


def test_every_process_writes_a_shard_that_is_checked(folder, tmp_path):
    path = tmp_path / "step-000006"
    shutil.copytree(folder / "4/chain/checkpoints" / path.name, path)
    shards = sorted(str(file.relative_to(path)) for file in (path / "shards").iterdir())
    assert [name[:18] for name in shards] == [f"shards/shard-{number:05d}" for number in range(1, 5)]
    assert newest_checkpoint(tmp_path) == (path, [])
    content = (path / shards[2]).read_bytes()
    (path / shards[2]).write_bytes(content[:-1])
    assert newest_checkpoint(tmp_path) == (None, [f"{path.name} skipped: {shards[2]} is damaged"])
