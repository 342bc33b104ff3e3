"""Train for DISTILLKIT_STEPS tiny steps, and watch memory and the metrics from outside: `python -m
tests.faults.steps_victim FOLDER`. Prints what was seen, as JSON: resident bytes at a tenth, half and all of the steps,
how often metrics.jsonl was read, and whether a line of it was ever no JSON."""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

import torch

from distillkit.training import loop
from distillkit.training.records import Records
from tests.tiny import classifier, encoded, training

STEPS = int(os.environ.get("DISTILLKIT_STEPS", "200"))
SECONDS = 0.2  # between two looks at the metrics


def resident() -> int:
    """Return the bytes of memory that this process holds, without files that are mapped: those come and go."""
    [line] = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon:"))
    return int(line.split()[1]) * 1024


class Reader(threading.Thread):
    """Read metrics.jsonl while it is written, as somebody who draws a curve does."""

    def __init__(self, path: Path) -> None:
        super().__init__(daemon=True)
        self.path, self.done = path, threading.Event()
        self.looks, self.broken, self.place, self.last = 0, 0, 0, 0

    def run(self) -> None:
        while not self.done.wait(SECONDS):
            self.look()

    def look(self) -> None:
        """Read what is new up to the last whole line; its steps have to go on from those before."""
        if not self.path.exists():
            return
        self.looks += 1
        with self.path.open("rb") as file:
            file.seek(self.place)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        self.place += len(whole)
        for line in whole.splitlines():
            try:
                step = json.loads(line)["step"]
            except ValueError:
                self.broken += 1
            else:
                self.broken += step < self.last
                self.last = step


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    student, teacher = classifier(layers=1), classifier(layers=1, seed=1)
    data = encoded(folder / "data", student.task)
    every = max(STEPS // 10, 1)
    settings: dict[str, Any] = {"max_steps": STEPS, "batch_size": 4, "evaluate_every": every, "checkpoint_every": every}
    run = training(folder, student, teacher, data, **settings, async_checkpoint=True)
    reader, seen = Reader(folder / "metrics.jsonl"), {}
    write = Records.write

    def watched(self: Records, event: str, step: int, values: dict[str, Any]) -> None:
        write(self, event, step, values)
        if event == "train" and step in (STEPS // 10, STEPS // 2, STEPS):
            seen[step] = resident()
            print("SEEN", step, seen[step], flush=True)

    Records.write = watched  # type: ignore[method-assign]
    reader.start()
    loop.fit(run)
    reader.done.set()
    reader.join()
    reader.look()
    facts = {"resident": list(seen.values()), "looks": reader.looks, "broken": reader.broken, "last": reader.last}
    print("FOUND", json.dumps(facts))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
