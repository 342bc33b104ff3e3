"""Time what a user waits for before anything happens: help and the composed config. Prints a table and JSON.

python scripts/bench/startup.py
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from statistics import median

CASES = {
    "python -c pass": ["-c", "pass"],
    "distillkit --help": ["-m", "distillkit", "--help"],
    "distillkit recipes": ["-m", "distillkit", "recipes"],
    "distillkit train sst2 --cfg job": ["-m", "distillkit", "train", "sst2", "--cfg", "job"],
}
ROUNDS = 11


def main() -> None:
    """Run the cases in turn, each in a process of its own."""
    seconds: dict[str, list[float]] = {name: [] for name in CASES}
    for _ in range(ROUNDS):
        for name, arguments in CASES.items():
            started = time.perf_counter()
            subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
            seconds[name].append(time.perf_counter() - started)
    for name, times in seconds.items():
        print(f"{name:<34} median {median(times):.3f} s   min {min(times):.3f} s   max {max(times):.3f} s")
    print(json.dumps({name: median(times) for name, times in seconds.items()}))


if __name__ == "__main__":
    main()
