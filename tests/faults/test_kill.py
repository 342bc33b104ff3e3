"""A run that is killed (SIGKILL) at any moment and started again ends as if nothing had happened."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import events

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def trials(tmp_path_factory) -> tuple[Path, list[dict]]:
    folder = tmp_path_factory.mktemp("killed")
    command = [sys.executable, "-m", "tests.faults.victim", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("TRIAL ")]
    return folder, [json.loads(line.removeprefix("TRIAL ")) for line in lines]


def test_every_run_was_really_killed_and_then_finished(trials):
    _, results = trials
    assert len(results) == 11
    assert sum(trial["output"].startswith("background") for trial in results) == 3
    for trial in results:
        assert trial["codes"] == [-9] * len(trial["kills"]) + [0], trial


def test_the_weights_are_those_of_the_run_that_was_not_killed(trials):
    folder, results = trials
    expected = (folder / "whole" / "model" / "model.safetensors").read_bytes()
    for trial in results:
        assert (folder / trial["output"] / "model" / "model.safetensors").read_bytes() == expected, trial


def test_the_metrics_are_written_once_and_the_same(trials):
    folder, results = trials
    expected = events(folder / "whole")
    assert [event["step"] for event in expected if event["event"] == "train"] == [2, 4, 6, 8, 10, 12]
    for trial in results:
        assert events(folder / trial["output"]) == expected, trial


def test_the_best_weights_are_tracked_across_the_kill(trials):
    folder, results = trials
    names = ["whole", *(trial["output"] for trial in results)]
    reports = [json.loads((folder / name / "report.json").read_text())["train"] for name in names]
    kept = [{key: report[key] for key in ("best_step", "best_value", "steps", "metrics")} for report in reports]
    losses = [event["loss"] for event in events(folder / "whole") if event["event"] == "evaluate"]
    assert kept[0]["best_step"] == 2 * (losses.index(min(losses)) + 1)
    assert kept == [kept[0]] * len(kept)


def test_nothing_half_written_is_left(trials):
    folder, results = trials
    for trial in results:
        left = [str(path) for path in (folder / trial["output"]).rglob("*partial*")]
        assert not left, trial
