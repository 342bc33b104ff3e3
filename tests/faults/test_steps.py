"""Many steps take no more memory than few, and the metrics can be read while they are written."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.faults.steps_victim import STEPS

ROOT = Path(__file__).resolve().parents[2]
FEW = 10_000  # below, memory is still being reserved


def test_memory_stays_and_the_metrics_are_readable(tmp_path):
    command = [sys.executable, "-m", "tests.faults.steps_victim", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300 + STEPS, check=False)
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith("FOUND "))
    found = json.loads(line.removeprefix("FOUND "))
    assert found["looks"] > 1
    assert (found["broken"], found["last"]) == (0, STEPS)
    begun, *_, ended = found["resident"]
    assert ended <= begun * (1.01 if STEPS > FEW else 1.05)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == STEPS + 10
