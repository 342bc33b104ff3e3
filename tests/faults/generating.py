"""Generate the same data again and again, each time killed elsewhere: `python -m tests.faults.generating FOLDER`.

One process imports everything and forks the runs, so that a kill costs no new import. Prints one JSON line a trial.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from distillkit.commands import generate_pseudo
from distillkit.generation.soft_labels import AskedForLabels
from distillkit.generation.teacher_store import AskedForStore
from distillkit.schema import Config
from tests.faults.victim import WRITES, in_a_fork
from tests.tiny import classifier, data_files, language_model

KILLS = int(os.environ.get("DISTILLKIT_KILLS", "10"))  # of each kind of run
GENERATORS: dict[str, dict[str, Any]] = {
    "labels": {"_target_": "distillkit.generation.soft_labels.SoftLabels", "batch_size": 3, "shard_rows": 8},
    "store": {"_target_": "distillkit.generation.teacher_store.TeacherStore", "batch_size": 3, "shard_rows": 8},
}
TASKS = {
    "labels": "distillkit.tasks.sequence_classification.SequenceClassification",
    "store": "distillkit.tasks.causal_lm.CausalLM",
}


def config(folder: Path, kind: str, output: Path) -> Config:
    """Ask a teacher about 40 rows in 5 shards."""
    columns = {} if kind == "labels" else {"columns": {"text": "text"}}
    data = data_files(folder / "data") | columns
    return Config(
        name="victim",
        output_dir=str(output),
        root_dir=str(output),
        task={"_target_": TASKS[kind], "max_length": 32},
        dataset={"_target_": "distillkit.data.files.FileDataset", **data},
        teacher={"_target_": "distillkit.models.teachers.LiveTeacher", "path": str(folder / f"{kind}-teacher")},
        generate=GENERATORS[kind],
    )


class Moment:
    """Count file operations in a folder and questions to the teacher, and die at one of them."""

    def __init__(self, folder: Path, number: int) -> None:
        self.folder, self.number, self.passed = str(folder), number, 0
        sys.addaudithook(self.on_audit)
        for asked in (AskedForLabels, AskedForStore):
            self.watch(asked)

    def watch(self, asked: type) -> None:
        answer = asked.answer

        def watched(own: Any, start: int, stop: int) -> Any:
            self.tick()
            return answer(own, start, stop)

        asked.answer = watched

    def on_audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in WRITES and any(self.folder in str(argument) for argument in arguments[:2]):
            self.tick()

    def tick(self) -> None:
        self.passed += 1
        if self.passed == self.number:
            os.kill(os.getpid(), signal.SIGKILL)


def run(folder: Path, kind: str, output: Path, number: int = 0) -> None:
    moment = Moment(output, number)
    generate_pseudo.main(config(folder, kind, output))
    (folder / f"{kind}-moments").write_text(str(moment.passed))


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    assert in_a_fork(lambda: classifier().save(folder / "labels-teacher")) == 0
    assert in_a_fork(lambda: language_model().save(folder / "store-teacher")) == 0
    for kind in GENERATORS:
        assert in_a_fork(lambda of=kind: run(folder, of, folder / f"{of}-whole")) == 0
        moments = int((folder / f"{kind}-moments").read_text())
        for trial, number in enumerate(sorted(random.Random(0).sample(range(1, moments + 1), min(KILLS, moments)))):
            output = folder / f"{kind}-killed-{trial}"
            killed = in_a_fork(lambda of=kind, to=output, at=number: run(folder, of, to, at))
            kept = sorted(path.name for path in output.glob("*/part-*") if path.suffix == ".json")
            again = in_a_fork(lambda of=kind, to=output: run(folder, of, to))
            facts = {"kind": kind, "output": output.name, "at": number, "kept": kept, "codes": [killed, again]}
            print("TRIAL", json.dumps(facts), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
