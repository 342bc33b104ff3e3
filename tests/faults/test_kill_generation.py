"""Generation that is killed (SIGKILL) at any moment and started again makes the files of a run that was not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from distillkit.reporting.files import read_report
from tests.faults.generating import KILLS

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("generated", "pseudo", "teacher-store")


@pytest.fixture(scope="module")
def trials(tmp_path_factory) -> tuple[Path, list[dict]]:
    folder = tmp_path_factory.mktemp("killed")
    command = [sys.executable, "-m", "tests.faults.generating", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300 + 60 * KILLS, check=False)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("TRIAL ")]
    return folder, [json.loads(line.removeprefix("TRIAL ")) for line in lines]


def files(output: Path) -> dict[str, bytes]:
    """What a run leaves, by its path."""
    found = (path for folder in FOLDERS for path in (output / folder).rglob("*") if path.is_file())
    return {str(path.relative_to(output)): path.read_bytes() for path in found}


def test_every_run_was_really_killed_and_then_finished(trials):
    _, results = trials
    assert len(results) >= 20
    for trial in results:
        assert trial["codes"] == [-9, 0], trial
    assert {len(trial["kept"]) for trial in results} >= {0, 5}  # before the first shard, and after the last


def test_the_files_are_those_of_the_run_that_was_not_killed(trials):
    folder, results = trials
    expected = {kind: files(folder / f"{kind}-whole") for kind in ("labels", "store")}
    assert len(expected["labels"]) == 13  # 5 shards with their checksums, where from; the data and its description
    assert len(expected["store"]) == 12
    for trial in results:
        assert files(folder / trial["output"]) == expected[trial["kind"]], trial


def test_the_report_is_that_of_the_run_that_was_not_killed(trials):
    folder, results = trials

    def report(output: Path) -> dict:
        own = read_report(output)["generate-pseudo"]
        return {key: value for key, value in own.items() if key not in ("seconds", "environment", "folder", "markdown")}

    for trial in results:
        assert report(folder / trial["output"]) == report(folder / f"{trial['kind']}-whole"), trial


def test_nothing_half_written_is_left(trials):
    folder, results = trials
    for trial in results:
        left = [str(path) for path in (folder / trial["output"]).rglob("*partial*")]
        assert not left, trial
