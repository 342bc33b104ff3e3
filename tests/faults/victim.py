"""Train the same run again and again, each time killed at another moment: `python -m tests.faults.victim FOLDER`.

One process imports everything and forks the runs, so that a kill costs no new import. Prints one JSON line a trial.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from distillkit.commands import train
from distillkit.losses.objective import Objective
from distillkit.schema import Config, TrainSettings
from tests.tiny import classifier, data_files

RANDOM_KILLS = 4
WRITES = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree")  # what Python reports of files
BACKGROUND = RANDOM_KILLS + 4  # from this trial on checkpoints are written while training goes on
BEFORE_THE_FIRST_CHECKPOINT, IN_THE_MIDDLE, AT_THE_END = 4, 20, 34  # micro-batches; three make a step


def config(folder: Path, output: Path) -> Config:
    """Distil half of a teacher with dropout: evaluated every second step, a checkpoint every third.

    Where the output folder says so, checkpoints are written while training goes on.
    """
    losses = {"hard": "distillkit.losses.task.CrossEntropy", "kd": "distillkit.losses.divergences.ForwardKL"}
    return Config(
        name="victim",
        output_dir=str(output),
        task={"_target_": "distillkit.tasks.sequence_classification.SequenceClassification", "max_length": 32},
        dataset={"_target_": "distillkit.data.files.FileDataset", **data_files(folder / "data")},
        teacher={"_target_": "distillkit.models.teachers.LiveTeacher", "path": str(folder / "teacher")},
        student={"_target_": "distillkit.models.students.FromTeacher", "layers": 1},
        loss={
            "_target_": "distillkit.losses.objective.Objective",
            "terms": {name: {"weight": 0.5, "loss": {"_target_": target}} for name, target in losses.items()},
        },
        train=TrainSettings(
            max_steps=12,
            batch_size=8,
            micro_batch_size=3,
            learning_rate=1e-2,
            evaluate_every=2,
            checkpoint_every=3,
            log_every=2,
            best_metric="loss",
            async_checkpoint=output.name.startswith("background"),
        ),
    )


class Moment:
    """Count file operations in a folder or micro-batches, and die at one of them."""

    def __init__(self, folder: Path, kind: str | None, number: int) -> None:
        self.folder, self.kind, self.number = str(folder), kind, number
        self.operations = self.micro_batches = 0
        sys.addaudithook(self.on_audit)
        forward: Callable[..., Any] = Objective.forward

        def counted(*arguments: Any) -> Any:
            self.micro_batches += 1
            self.die_at("micro-batch", self.micro_batches)
            return forward(*arguments)

        Objective.forward = counted

    def on_audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in WRITES and any(self.folder in str(argument) for argument in arguments[:2]):
            self.operations += 1
            self.die_at("operation", self.operations)

    def die_at(self, kind: str, number: int) -> None:
        if (kind, number) == (self.kind, self.number):
            os.kill(os.getpid(), signal.SIGKILL)


def in_a_fork(work: Callable[[], None]) -> int:
    """Run in a child and return its exit code, negative for the signal that ended it."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def run(folder: Path, output: Path, kind: str | None = None, number: int = 0) -> None:
    moment = Moment(output, kind, number)
    train.main(config(folder, output))
    (folder / "operations").write_text(str(moment.operations))


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    assert in_a_fork(lambda: classifier(layers=2, dropout=0.3).save(folder / "teacher")) == 0
    assert in_a_fork(lambda: run(folder, folder / "whole")) == 0
    operations = int((folder / "operations").read_text())
    moments = [[("operation", n)] for n in sorted(random.Random(0).sample(range(1, operations + 1), RANDOM_KILLS))]
    moments += [[("micro-batch", n)] for n in (BEFORE_THE_FIRST_CHECKPOINT, IN_THE_MIDDLE, AT_THE_END)]
    moments += [[("micro-batch", IN_THE_MIDDLE), ("micro-batch", 9), ("operation", 30)]]
    moments += [[("micro-batch", IN_THE_MIDDLE)], *([("operation", n)] for n in (operations // 3, operations // 2))]
    for trial, kills in enumerate(moments):
        output = folder / f"{'killed' if trial < BACKGROUND else 'background'}-{trial}"
        codes = [in_a_fork(lambda at=at, to=output: run(folder, to, *at)) for at in kills]
        codes.append(in_a_fork(lambda to=output: run(folder, to)))
        print("TRIAL", json.dumps({"output": output.name, "kills": kills, "codes": codes}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
