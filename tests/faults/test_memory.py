"""Too little memory for a compression step is one line, and what was whole before is kept."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_one_line_says_so_and_the_same_command_goes_on(tmp_path):
    command = [sys.executable, "-m", "tests.faults.memory_victim", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(
        next(line for line in done.stdout.splitlines() if line.startswith("FOUND ")).removeprefix("FOUND ")
    )
    assert found == {"codes": [2, 0], "worked": ["a", "b", "b"]}
    assert "Traceback" not in done.stderr
    assert [line for line in done.stderr.splitlines() if line.startswith("distillkit")] == [
        "distillkit: error: compress.steps.b: there is too little memory for this; lower compress.calibration_rows and "
        "compress.calibration_batch_size, or use a machine with more; the same command goes on from here"
    ]
