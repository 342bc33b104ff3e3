"""A run that is killed (SIGKILL) at any moment and started again ends as if nothing had happened."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.faults.victim import KILLS
from tests.tiny import events

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def trials(tmp_path_factory) -> tuple[Path, list[dict]]:
    folder = tmp_path_factory.mktemp("killed")
    command = [sys.executable, "-m", "tests.faults.victim", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300 + 60 * KILLS, check=False)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("TRIAL ")]
    return folder, [json.loads(line.removeprefix("TRIAL ")) for line in lines]


def changes(trial: dict) -> bool:
    """Tell whether a run went on in another number of processes."""
    return len(set(trial.get("processes", [1]))) > 1


def test_every_run_was_really_killed_and_then_finished(trials):
    _, results = trials
    assert len(results) == 7 + KILLS + KILLS // 10
    assert sum(trial["output"].startswith("background") for trial in results) >= 3
    for trial in results:
        assert trial["codes"] == [-9] * len(trial["kills"]) + [0], trial


def test_the_weights_are_those_of_the_run_that_was_not_killed(trials):
    folder, results = trials
    for trial in results:
        found, expected = (folder / name / "model" / "model.safetensors" for name in (trial["output"], trial["like"]))
        if changes(trial):  # sums are added up in another order
            ours, theirs = load_file(found), load_file(expected)
            assert max(float((ours[name] - weight).abs().max()) for name, weight in theirs.items()) < 1e-5, trial
        else:
            assert found.read_bytes() == expected.read_bytes(), trial


def test_the_metrics_are_written_once_and_the_same(trials):
    folder, results = trials
    whole = events(folder / "whole")
    assert [event["step"] for event in whole if event["event"] == "train"] == [2, 4, 6, 8, 10, 12]
    for trial in results:
        found, expected = events(folder / trial["output"]), events(folder / trial["like"])
        assert [(event["event"], event["step"]) for event in found] == [(e["event"], e["step"]) for e in expected], (
            trial
        )
        if changes(trial):
            assert [event["loss"] for event in found] == pytest.approx([event["loss"] for event in expected], rel=1e-5)
        else:
            assert found == expected, trial


def test_the_best_weights_are_tracked_across_the_kill(trials):
    folder, results = trials
    names = ["whole", *(trial["output"] for trial in results if trial["like"] == "whole")]
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
