"""Frozen, thawing and adapted students, and early stopping: two processes (gloo) come to what one comes to."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from distillkit.reporting.files import read_report
from tests.distributed.test_two_processes import train_together
from tests.nursery import Nursery
from tests.tiny import classifier, data_files, events, save

RECIPE = """\
# Ways to fine-tune, in two processes.
# distillkit run ways.yaml
defaults:
  - config
  - override teacher: live
  - override student: from_teacher
  - override loss: kd
  - _self_
name: ways
task: {max_length: 32}
dataset: {train: data/train.jsonl, validation: data/validation.jsonl}
teacher: {path: teacher}
student: {layers: 2}
train:  # 36 rows in batches of 7; a key's bias has no gradient but rounding errors, which Adam would blow up
  {batch_size: 7, micro_batch_size: 2, epochs: 2, evaluate_every: 4, learning_rate: 0.01, epsilon: 1.0e-3, log_every: 1}
stages:
  frozen: {command: train, set: {train: {freeze: 1, layer_decay: 0.8, head_learning_rate: 0.02}}}
  thawing: {command: train, set: {train: {unfreeze: 0.75, layer_decay: 0.8, keep_best: false}}}
  adapted: {command: train, set: {train: {lora: {rank: 2, alpha: 8.0}, unfreeze: 3}}}
  stopped: {command: train, set: {train: {patience: 1, min_delta: 10.0}}}
"""
STEPS = {"frozen": 12, "thawing": 12, "adapted": 12, "stopped": 8}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, nursery: Nursery) -> Path:
    """The recipe, run by one process into `ways-1` and by two into `ways-2`."""
    folder = tmp_path_factory.mktemp("ways")
    save(classifier(), folder / "teacher")
    data_files(folder / "data", 36)
    (folder / "ways.yaml").write_text(RECIPE, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in ("RANK", "LOCAL_RANK"):
            patch.delenv(name, raising=False)
        train_together(nursery, folder, ["run", "ways.yaml"], "ways")
    return folder


@pytest.mark.parametrize("stage", STEPS)
def test_two_processes_learn_what_one_learns(runs: Path, stage: str) -> None:
    one, two = (runs / f"ways-{processes}" / stage for processes in (1, 2))
    expected, found = events(one), events(two)
    assert [(event["event"], event["step"]) for event in found] == [(e["event"], e["step"]) for e in expected]
    assert [event["step"] for event in expected if event["event"] == "train"] == list(range(1, STEPS[stage] + 1))
    for ours, theirs in zip(found, expected, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert ours.get("grad_norm", 0.0) == pytest.approx(theirs.get("grad_norm", 0.0), rel=1e-4)
    weights, same, before = (
        load_file(path / "model.safetensors") for path in (one / "model", two / "model", runs / "teacher")
    )
    assert weights.keys() == same.keys() == before.keys()
    for name, weight in weights.items():
        assert (weight - same[name]).abs().max() < 1e-5, name
    changed = {name for name in before if not torch.equal(before[name], same[name])}
    assert changed == {name for name in before if not torch.equal(before[name], weights[name])}
    if stage == "frozen":
        assert not any("embeddings" in name or "layer.0" in name for name in changed)
        assert any("layer.1" in name for name in changed)
    if stage == "adapted":
        assert all(("layer" in name and name.endswith("weight")) or "classifier" in name for name in changed)
    report = read_report(two)["train"]
    assert (report["steps"], report["stopped_early"]) == (STEPS[stage], stage == "stopped")
