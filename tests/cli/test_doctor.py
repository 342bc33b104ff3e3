"""`distillkit doctor`: what it is given, what it shows, what it ends with, and what it leaves: nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from distillkit.commands import doctor
from distillkit.diagnosis.collectives import Collectives
from distillkit.diagnosis.disk import Disk
from distillkit.diagnosis.speed import Compilation, Speed
from distillkit.reporting import console
from tests import tiny
from tests.terminal import distillkit

from .conftest import Shell

SPEED = Speed({"no": 1e11, "bf16": 4e11, "fp16": 1e9}, 1e10, 1e-5, {"math": 1.0, "flash": None}, Compilation(True, 9.0))

RECIPE = """\
# Two trainings, the second of which needs the first.
# distillkit run two.yaml
defaults:
  - config
  - override task: sequence_classification
  - override teacher: live
  - override student: from_teacher
  - _self_
name: two
dataset: {{train: {train}, validation: {validation}}}
teacher: {{path: "${{root_dir}}/teacher/model"}}
student: {{layers: 1}}
task: {{max_length: 16}}
train: {{batch_size: 8, epochs: 2}}
stages:
  teacher:
    command: train
    choose: {{teacher: none, loss: hard, student: from_config}}
    set:
      student:
        model_type: bert
        config: {{hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2, intermediate_size: 64}}
        tokenizer: {{_target_: distillkit.models.tokenizers.ByteLevelBPE, vocab_size: 320}}
  student:
    command: train
    choose: {{loss: kd}}
  labels:
    command: generate-pseudo
  again:
    command: train
    set: {{dataset: {{train: "${{root_dir}}/labels/pseudo/train.parquet"}}}}
"""


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """A doctor that takes no time, in an empty folder; what it finds can be changed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    found = {
        "measure_speed": SPEED,
        "try_collectives": Collectives(2, "gloo", 1e-4, 1e9),
        "try_disk": Disk("outputs", "outputs", 10**12, 1e9, 1e9),
    }
    around = replace(doctor.look_around(), load=0.0, omp_threads=None, cores=1, threads=1)
    monkeypatch.setattr(doctor, "look_around", lambda: around)
    for name in found:
        monkeypatch.setattr(doctor, name, lambda *_, name=name: found[name])
    return found


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "two.yaml"
    files = tiny.data_files(tmp_path / "data", 40)
    path.write_text(RECIPE.format(train=files["train"], validation=files["validation"]), encoding="utf-8")
    return str(path)


def test_it_is_started_with_the_trainings_that_were_asked_for(shell: Shell) -> None:
    def trainings(*argv: str) -> list[str]:
        assert shell("doctor", *argv).code == 0
        [(command, _, jobs, *flags)] = shell.started
        assert command == "doctor"
        return [*jobs, *flags]

    assert trainings() == []
    assert trainings("--json") == ["--json"]
    assert trainings("mine.yaml", "--json", "train.seed=3") == ["train", "--json"]
    assert trainings("train.precision=bf16") == []
    assert trainings("dataset.train=rows.csv", "student.path=small") == ["train"]
    assert trainings("quickstart") == ["teacher", "alone", "distilled"]
    assert shell.started[0][2]["teacher"].config.train.max_steps == 700
    assert shell.files() == {"mine.yaml"}


def test_bad_input_is_refused_in_one_line(shell: Shell) -> None:
    assert shell("doctor", "quikstart").err == (
        "distillkit: error: unknown recipe 'quikstart'; did you mean 'quickstart'?\n"
    )
    assert shell("doctor", "mine.yaml", "train.max_stepz=3").code == 2
    assert shell("train", "mine.yaml", "--json").code == 2  # a flag of doctor alone


def test_a_screen_of_tables(quick: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console.console, "width", 100)
    result = distillkit("doctor")
    assert (result.code, result.err) == (0, "")
    for part in ("torch.compile", "all-reduce", "bf16 ←", "GFLOP/s", "what to change", "hub"):
        assert part in result.out
    assert "train.precision=bf16" in result.out
    assert len(result.out.splitlines()) < 50
    assert max(len(line.rstrip()) for line in result.out.splitlines()) <= 100
    assert list(Path().iterdir()) == []


def test_json_is_the_same(quick: dict[str, Any]) -> None:
    result = distillkit("doctor", "--json")
    said = json.loads(result.out)
    assert result.code == 0
    assert said["speed"]["matmul"] == SPEED.matmul
    assert said["collectives"]["backend"] == "gloo"
    assert said["trainings"] == {}
    assert any(change["fix"] == "train.precision=bf16" for change in said["change"])


def test_it_ends_with_1_if_something_is_broken(quick: dict[str, Any]) -> None:
    quick["try_disk"] = Disk("outputs", "/", 10**12, problem="Read-only file system")
    result = distillkit("doctor")
    assert result.code == 1
    assert "✗ cannot write to / (Read-only file system)" in result.out
    assert json.loads(distillkit("doctor", "--json").out)["change"][0]["broken"] is True


def test_trainings_are_estimated_one_after_the_other(quick: dict[str, Any], recipe: str) -> None:
    result = distillkit("doctor", recipe, "--json")
    assert (result.code, result.err) == (0, "")
    trainings = json.loads(result.out)["trainings"]
    teacher, student, again = (trainings[name] for name in ("teacher", "student", "again"))
    assert teacher["estimate"]["steps"] == student["estimate"]["steps"] == 10  # 40 rows in batches of 8, twice
    assert student["estimate"]["teacher_parameters"] == teacher["estimate"]["parameters"]
    assert student["estimate"]["parameters"] < teacher["estimate"]["parameters"]
    assert teacher["estimate"]["memory"]["optimiser"] == 8 * teacher["estimate"]["parameters"]
    assert teacher["estimate"]["seconds"] == pytest.approx(10 * teacher["estimate"]["step_seconds"])
    assert again["estimate"] is None
    assert "no such" in again["problem"] or "labels" in again["problem"]
    assert {path.name for path in Path().iterdir()} == {"two.yaml", "data"}


def test_estimates_are_shown(quick: dict[str, Any], recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console.console, "width", 100)
    out = distillkit("doctor", recipe).out
    assert "memory of each device" in out
    assert "again: not estimated, since an earlier stage has to run first" in out
    assert "of the steps alone" in " ".join(out.split())


def test_a_training_that_cannot_work_is_bad_input(quick: dict[str, Any]) -> None:
    result = distillkit("doctor", "dataset.train=absent.csv", "student.path=absent/model")
    assert result.code == 2
    assert "absent" in result.err
    assert result.out == ""
