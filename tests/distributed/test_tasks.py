"""Hidden words and packed rows in two processes are those of one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed.test_two_processes import train_together
from tests.nursery import Nursery
from tests.tiny import data_files, events, language_model, save
from tests.unit.test_masked_lm import masked_model

CASES = {
    "masked": ["task=masked_lm", "task.max_length=32", "task.mask_share=0.3", "teacher.path=masked"],
    "packed": ["task=causal_lm", "task.max_length=32", "task.packing=true", "teacher.path=causal"],
}
SETTINGS = [
    *("teacher=live", "student=from_teacher", "student.layers=1", "loss=kd", "train.batch_size=7"),
    *("train.micro_batch_size=2", "train.max_steps=6", "train.learning_rate=0.01", "train.epsilon=1e-3"),
    *("train.log_every=1", "train.evaluate_every=3", "train.schedule=constant"),
]


@pytest.mark.parametrize("case", CASES)
def test_two_processes_do_as_one(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nursery: Nursery) -> None:
    monkeypatch.chdir(tmp_path)
    save(masked_model(), tmp_path / "masked")
    save(language_model(), tmp_path / "causal")
    data = [f"dataset.{split}=data/{split}.jsonl" for split in data_files(tmp_path / "data", 36) if split != "test"]
    train_together(nursery, tmp_path, ["train", *data, *CASES[case], *SETTINGS, "name=same"], "run")
    one, two = events(Path("run-1")), events(Path("run-2"))
    assert len(one) == 8
    for ours, theirs in zip(one, two, strict=True):
        assert ours.get("items") == theirs.get("items")
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
