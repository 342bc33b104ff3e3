"""Train the same run again and again, each time killed at another moment: `python -m tests.faults.victim FOLDER`.

One process imports everything and forks the runs, so that a kill costs no new import. Prints one JSON line a trial.
DISTILLKIT_KILLS=50 makes it many trials, some of which go on in another number of processes.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from distillkit.commands import train
from distillkit.losses.objective import Objective
from distillkit.schema import Config, TrainSettings
from distillkit.tasks.sequence_classification import SequenceClassification
from tests.tiny import classifier, data_files

KILLS = int(os.environ.get("DISTILLKIT_KILLS", "4"))  # at random moments
CHANGES = [(1, 2), (2, 1), (2, 1, 2), (1, 2, 1), (2, 2)]  # processes that a run begins in, and goes on in
WRITES = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree")  # what Python reports of files
BEFORE_THE_FIRST_CHECKPOINT, IN_THE_MIDDLE, AT_THE_END = 4, 20, 34  # micro-batches; three make a step
SHARED, AGAIN = (5, 22), (1, 5)  # micro-batches of one of two processes: before the end, and after the last checkpoint


def config(folder: Path, output: Path) -> Config:
    """Distil half of a teacher with dropout: evaluated every second step, a checkpoint every third.

    Where the output folder says so, checkpoints are written while training goes on; or there is nothing random and no
    rounding error that Adam would blow up, so that any number of processes comes to the same.
    """
    shared = output.name.startswith("shared")
    losses = {"hard": "distillkit.losses.task.CrossEntropy", "kd": "distillkit.losses.divergences.ForwardKL"}
    return Config(
        name="victim",
        output_dir=str(output),
        task={"_target_": "distillkit.tasks.sequence_classification.SequenceClassification", "max_length": 32},
        dataset={"_target_": "distillkit.data.files.FileDataset", **data_files(folder / "data")},
        teacher={
            "_target_": "distillkit.models.teachers.LiveTeacher",
            "path": str(folder / ("calm" if shared else "teacher")),
        },
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
            epsilon=1e-3 if shared else 1e-8,
            evaluate_every=2,
            checkpoint_every=3,
            log_every=2,
            best_metric="loss",
            async_checkpoint=output.name.startswith("background"),
        ),
    )


class Moment:
    """Count file operations in a folder, micro-batches or evaluated batches, and die at one of them."""

    def __init__(self, folder: Path, kind: str | None, number: int) -> None:
        self.folder, self.kind, self.number = str(folder), kind, number
        self.passed: Counter[str] = Counter()
        sys.addaudithook(self.on_audit)
        self.watch(Objective, "forward", "micro-batch")
        self.watch(SequenceClassification, "answer", "evaluated batch")

    def watch(self, owner: type, method: str, kind: str) -> None:
        before: Callable[..., Any] = getattr(owner, method)

        def counted(*arguments: Any) -> Any:
            self.tick(kind)
            return before(*arguments)

        setattr(owner, method, counted)

    def on_audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in WRITES and any(self.folder in str(argument) for argument in arguments[:2]):
            self.tick("operation")

    def tick(self, kind: str) -> None:
        self.passed[kind] += 1
        if (kind, self.passed[kind]) == (self.kind, self.number):
            os.kill(os.getpid(), signal.SIGKILL)


def in_a_fork(work: Callable[[], None]) -> int:
    """Run in a child and return its exit code, negative for the signal that ended it."""
    return in_forks([work])


def in_forks(works: list[Callable[[], None]]) -> int:
    """Run in children, all killed as soon as one fails; return the exit code of the first that failed, or 0."""
    left = {fork(work) for work in works}
    first = 0
    while left:
        child, status = os.wait()
        left.remove(child)
        code = os.waitstatus_to_exitcode(status)
        if code and not first:
            first = code
            for other in left:
                os.kill(other, signal.SIGKILL)
    return first


def fork(work: Callable[[], None]) -> int:
    """Start a child that does some work; return its id."""
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
    return child


def run(folder: Path, output: Path, kind: str | None = None, number: int = 0) -> None:
    moment = Moment(output, kind, number)
    train.main(config(folder, output))
    (folder / "moments").write_text(json.dumps(moment.passed))


def in_processes(count: int, work: Callable[[int], None]) -> int:
    """Run in so many children that train together, all stopped as soon as one is; return the first bad exit code."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1])}

    def one(rank: int) -> None:
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "ACCELERATE_USE_CPU": "true"}
        os.environ |= shared | own if count > 1 else {}
        work(rank)

    return in_forks([lambda rank=rank: one(rank) for rank in range(count)])


def random_moments(counts: dict[str, int]) -> list[tuple[str, int]]:
    """Draw moments, half of them file operations, since what these leave differs most."""
    draw = random.Random(0)
    kinds = [draw.choice(["operation", "operation", "micro-batch", "evaluated batch"]) for _ in range(KILLS)]
    return [(kind, draw.randint(1, counts[kind])) for kind in kinds]


def chosen_trials(operations: int) -> Iterator[tuple[str, list[tuple[str, int]]]]:
    """Yield what is tried in any case: folder and kills."""
    for number in (BEFORE_THE_FIRST_CHECKPOINT, IN_THE_MIDDLE, AT_THE_END):
        yield f"killed-at-{number}", [("micro-batch", number)]
    yield "killed-thrice", [("micro-batch", IN_THE_MIDDLE), ("micro-batch", 9), ("operation", 30)]
    yield f"background-{IN_THE_MIDDLE}", [("micro-batch", IN_THE_MIDDLE)]
    yield from ((f"background-part-{part}", [("operation", operations // part)]) for part in (3, 2))


def kill_alone(folder: Path) -> None:
    assert in_a_fork(lambda: run(folder, folder / "whole")) == 0
    moments = json.loads((folder / "moments").read_text())
    trials = list(chosen_trials(moments["operation"]))
    for trial, at in enumerate(random_moments(moments)):
        trials.append((f"{'background' if trial % 4 == 3 and KILLS > 4 else 'killed'}-{trial}", [at]))
    for name, kills in trials:
        output = folder / name
        codes = [in_a_fork(lambda at=at, to=output: run(folder, to, *at)) for at in kills]
        codes.append(in_a_fork(lambda to=output: run(folder, to)))
        print("TRIAL", json.dumps({"output": name, "like": "whole", "kills": kills, "codes": codes}), flush=True)


def kill_together(folder: Path) -> None:
    """Kill one of two processes, or the only one, and go on in another number of them."""
    for count in (1, 2):
        assert in_processes(count, lambda _, to=folder / f"shared-whole-{count}": run(folder, to)) == 0
    draw = random.Random(0)
    for trial in range(KILLS // 10):
        name, counts, codes, kills = f"shared-{trial}", CHANGES[trial % len(CHANGES)], [], []
        for count in counts[:-1]:
            victim, number = draw.randrange(count), draw.randint(*(AGAIN if kills else SHARED))
            kills.append((f"micro-batch of {victim} in {count}", number))

            def work(rank: int, at: tuple[int, int] = (victim, number), to: Path = folder / name) -> None:
                run(folder, to, "micro-batch" if rank == at[0] else None, at[1])

            codes.append(in_processes(count, work))
        codes.append(in_processes(counts[-1], lambda _, to=folder / name: run(folder, to)))
        like = "shared-whole-2" if set(counts) == {2} else "shared-whole-1"
        facts = {"output": name, "like": like, "processes": counts, "kills": kills, "codes": codes}
        print("TRIAL", json.dumps(facts), flush=True)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    assert in_a_fork(lambda: classifier(layers=2, dropout=0.3).save(folder / "teacher")) == 0
    assert in_a_fork(lambda: classifier(layers=2).save(folder / "calm")) == 0
    kill_alone(folder)
    if KILLS >= 10:
        kill_together(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
