"""Compress the same model again and again, each time killed at another moment: `python -m tests.faults.compress_victim
FOLDER`. Prints one JSON line a trial: the moments, the exit codes, and what was there after the kills."""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
from pathlib import Path

import torch

from distillkit.commands import compress
from distillkit.schema import Config
from tests.compressing import STEPS, command
from tests.faults.victim import Moment, in_a_fork

KILLS = int(os.environ.get("DISTILLKIT_KILLS", "4"))
TRAINING = 7  # micro-batches
CHAIN = {
    "layers": {"_target_": "distillkit.compression.depth.DropLayers", "keep": 1},
    "prune": STEPS["prune"],
    "retrain": STEPS["retrain"],
    "vocabulary": {"_target_": "distillkit.compression.vocabulary.TrimVocabulary"},
}


def config(folder: Path, output: Path) -> Config:
    made = command(folder)
    made.output_dir = str(output)
    made.compress.steps = {**CHAIN, "retrain": {**STEPS["retrain"], "train": {"max_steps": 10, "batch_size": 8}}}
    made.compress.budget.size_mb = 100.0
    made.evaluate.resamples = 0
    return made


def run(folder: Path, output: Path, kind: str | None = None, number: int = 0) -> None:
    moment = Moment(output, kind, number)
    compress.main(config(folder, output))
    (folder / "operations").write_text(str(moment.passed["operation"]))


def left(output: Path) -> dict[str, list[str]]:
    """Return the files of every variant that is there."""
    folders = [path for path in (output / "compressed").glob("[!.]*") if path.is_dir()]
    return {path.name: sorted(file.name for file in path.iterdir()) for path in folders}


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    assert in_a_fork(lambda: run(folder, folder / "whole")) == 0
    operations = int((folder / "operations").read_text())
    moments = [("operation", n) for n in sorted(random.Random(1).sample(range(1, operations + 1), KILLS))]
    for trial, at in enumerate([*moments, ("operation", operations - 1), ("micro-batch", TRAINING)]):
        output = folder / f"killed-{trial}"
        codes = [in_a_fork(lambda at=at, to=output: run(folder, to, *at))]
        found = left(output)
        codes.append(in_a_fork(lambda to=output: run(folder, to)))
        print("TRIAL", json.dumps({"output": output.name, "kill": at, "codes": codes, "left": found}), flush=True)
    shutil.rmtree(folder / "start")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
