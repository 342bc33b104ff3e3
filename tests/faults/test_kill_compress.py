"""A compression that is killed (SIGKILL) leaves no half-written variant, and the same command finishes it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.compress_victim import KILLS

ROOT = Path(__file__).resolve().parents[2]
VARIANTS = ["layers", "prune", "retrain", "vocabulary"]


@pytest.fixture(scope="module")
def trials(tmp_path_factory) -> tuple[Path, list[dict]]:
    folder = tmp_path_factory.mktemp("killed")
    command = [sys.executable, "-m", "tests.faults.compress_victim", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300 + 60 * KILLS, check=False)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("TRIAL ")]
    return folder, [json.loads(line.removeprefix("TRIAL ")) for line in lines]


def test_every_run_was_really_killed_and_then_finished(trials):
    _, results = trials
    assert len(results) == KILLS + 2
    for trial in results:
        assert trial["codes"] == [-9, 0], trial


def test_what_a_kill_leaves_is_whole(trials):
    folder, results = trials
    for trial in results:
        for name, files in trial["left"].items():
            whole = sorted(path.name for path in (folder / "whole" / "compressed" / name).iterdir())
            assert files == whole, trial


def test_the_variants_are_those_of_the_run_that_was_not_killed(trials):
    folder, results = trials
    for trial in results:
        compressed = folder / trial["output"] / "compressed"
        assert not [path.name for path in compressed.iterdir() if path.name.startswith(".")], trial
        assert (compressed / "chosen").is_dir()
        for name in VARIANTS:
            found, expected = (
                (where / "compressed" / name / "model.safetensors").read_bytes()
                for where in (folder / trial["output"], folder / "whole")
            )
            assert found == expected, (trial, name)
