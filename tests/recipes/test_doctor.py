"""The trainings of every recipe can be estimated, before any of its stages has run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distillkit.commands import doctor
from distillkit.diagnosis.collectives import Collectives
from distillkit.diagnosis.speed import Compilation, Speed
from tests.terminal import distillkit

from .test_recipes import SMOKE, short_sources  # noqa: F401

SPEED = Speed({"no": 1e11, "bf16": 2e11, "fp16": 1e9}, 1e10, 1e-5, {"math": 1.0}, Compilation(True, 9.0))
ONE = ["train.batch_size=64", "train.micro_batch_size=null"]  # all rows are one batch, the longest and the typical one
WAITING = {
    "answers",
    "augment",
    "eighth",
    "server",
    "soft_labels",
    "store",
    "summarise_sequences",
    "translate_sequences",
}


@pytest.mark.parametrize("recipe", SMOKE)
def test_every_training_is_estimated(recipe: str, desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "measure_speed", lambda _: SPEED)
    monkeypatch.setattr(doctor, "try_collectives", lambda _: Collectives(2, "gloo", 1e-4, 1e9))
    result = distillkit("doctor", recipe, *SMOKE[recipe], *ONE, "--json")
    assert (result.code, result.err) == (0, "")
    trainings = json.loads(result.out)["trainings"]
    problems = [training["problem"] for training in trainings.values() if training["problem"]]
    assert bool(problems) == (recipe in WAITING)
    assert all(f"outputs/{recipe}/" in problem for problem in problems)
    for found in filter(None, (training["estimate"] for training in trainings.values())):
        assert found["step_seconds"] > 0
        assert found["peak_bytes"] > found["memory"]["weights"] + found["memory"]["optimiser"]
        assert found["step"]["flops"] > 0
    assert not (desk / "outputs").exists()
