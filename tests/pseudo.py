"""Runs of `generate-pseudo` for the tests."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet

from distillkit.generation.filters.base import Filter
from distillkit.schema import Config, TrainSettings
from tests.tiny import LABELS, data_files

SEQUENCE_CLASSIFICATION = "distillkit.tasks.sequence_classification.SequenceClassification"
FILES = "distillkit.data.files.FileDataset"


class Longest(Filter):
    """Reject texts of more characters."""

    def __init__(self, characters: int) -> None:
        self.characters = characters

    def judge(self, rows: list[dict]) -> list[str | None]:
        return [None if len(row["text"]) <= self.characters else "too long" for row in rows]


def read(folder: Path) -> list[dict]:
    """All rows of a Parquet folder, in order."""
    return [row for path in sorted(folder.glob("*.parquet")) for row in pyarrow.parquet.read_table(path).to_pylist()]


def config(folder: Path, output: str, **nodes) -> Config:
    made = Config(output_dir=str(folder / output), train=TrainSettings(max_steps=6, batch_size=8, log_every=1))
    made.train.learning_rate = 1e-2
    made.task = {"_target_": SEQUENCE_CLASSIFICATION, "max_length": 32}
    made.dataset = {"_target_": FILES, **data_files(folder / "data"), "labels": LABELS}
    made.teacher = {"_target_": "distillkit.models.teachers.LiveTeacher", "path": str(folder / "teacher")}
    for name, node in nodes.items():
        setattr(made, name, node)
    return made
