"""Frozen configs survive the disk; stages are the recipe with parts swapped."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from distillkit.freeze import StageJob, differences, digest, freeze, load
from distillkit.schema import Config, LaunchSettings, Precision, Stage, TrainSettings

from .conftest import Shell

ODD = ["1e-3", "yes", "null", "~", "${not.a.reference}", r"\${x}", r"a\\${x:1}", "${", "a: b", "é\n", "", "007", "on"]


def test_a_config_survives_freezing(tmp_path: Path) -> None:
    train = TrainSettings(learning_rate=1e-3, betas=[0.9, 1e-12], precision=Precision.no, max_steps=None)
    config = Config(task={"_target_": "a.B", "odd": ODD, "n": {"x": 1e-7, "y": None, "z": []}}, train=train)
    config.stages = {"a": Stage(choose={"loss": "kd"})}
    path = tmp_path / "train.yaml"
    path.write_text(freeze(config), encoding="utf-8")
    assert load(path) == config


def test_the_digest_is_about_what_decides_the_outcome() -> None:
    config = Config(name="a", output_dir="o", root_dir="o")
    same = replace(config, launch=LaunchSettings(num_processes=2), resume="never", overwrite=True, output_dir="p")
    assert digest(config, "train") == digest(same, "train")
    longer = replace(config, train=TrainSettings(max_steps=600))
    assert digest(config, "train") != digest(longer, "train")
    assert digest(config, "eval") == digest(longer, "eval")


def test_differences_name_the_keys() -> None:
    old = Config(train=TrainSettings(max_steps=500), task={"a": 1, "b": [1, 2]})
    new = Config(train=TrainSettings(max_steps=600), task={"b": [1, 3]}, resume="never")
    assert differences(old, new, "train") == [
        "task.a: 1 -> (absent)",
        "task.b.1: 2 -> 3",
        "train.max_steps: 500 -> 600",
    ]


STAGES = """\
stages:
  teacher:
    choose: {teacher: none, student: from_config, loss: hard}
    set:
      student: {model_type: llama, config: {hidden_size: 8}}
      train: {epochs: 2}
  student:
    set:
      teacher: {_target_: distillkit.models.teachers.LiveTeacher, path: "${root_dir}/teacher/model"}
      loss: {terms: {kd: {weight: "${one_minus:${loss.alpha}}"}, more: {weight: 0}}}
  final:
    command: eval
    set: {evaluate: {models: {student: "${root_dir}/student/model"}}}
"""


def stages(shell: Shell, *overrides: str) -> dict[str, StageJob]:
    recipe = shell.folder / "mine.yaml"
    if "stages" not in recipe.read_text(encoding="utf-8"):
        recipe.write_text(recipe.read_text(encoding="utf-8") + STAGES, encoding="utf-8")
    result = shell("run", "mine.yaml", *overrides)
    assert (result.code, result.err) == (0, "")
    [(command, top, jobs)] = shell.started
    assert (command, top.output_dir) == ("run", jobs["teacher"].config.root_dir)
    return jobs


def test_stages_swap_groups_and_set_values(shell: Shell) -> None:
    jobs = stages(shell)
    assert [(job.name, job.command) for job in jobs.values()] == [
        ("teacher", "train"),
        ("student", "train"),
        ("final", "eval"),
    ]
    teacher, student = jobs["teacher"].config, jobs["student"].config
    assert teacher.student["config"] == {"hidden_size": 8}
    assert "path" not in teacher.student  # nothing of the recipe's own student is left
    assert list(teacher.loss["terms"]) == ["hard"]
    assert (teacher.train.epochs, student.train.epochs) == (2.0, 3.0)
    assert (teacher.train.max_steps, student.train.max_steps) == (7, 7)
    assert student.teacher["path"] == "outputs/mine/teacher/model"
    assert list(student.loss["terms"]) == ["hard", "kd", "more"]


def test_stages_write_side_by_side(shell: Shell) -> None:
    config: Any = stages(shell, "output_dir=o")["student"].config
    assert (config.name, config.output_dir, config.root_dir) == ("mine-student", "o/student", "o")
    assert config.stages == {}


def test_a_change_upstream_changes_what_depends_on_it(shell: Shell) -> None:
    before = stages(shell)
    assert list(before["student"].config.upstream) == ["teacher"]
    assert list(before["final"].config.upstream) == ["student"]
    after = stages(shell, "stages.teacher.set.train.epochs=4")
    for name in ("teacher", "student", "final"):
        command = before[name].command
        assert digest(before[name].config, command) != digest(after[name].config, command)
    again = stages(shell)
    assert again == before


def test_a_key_of_the_recipe_reaches_every_stage_that_does_not_set_it(shell: Shell) -> None:
    jobs = stages(shell, "train.seed=5", "train.epochs=9")
    assert [jobs[name].config.train.seed for name in jobs] == [5, 5, 5]
    assert (jobs["teacher"].config.train.epochs, jobs["student"].config.train.epochs) == (2.0, 9.0)


def test_a_sweep_over_a_whole_run(shell: Shell) -> None:
    stages(shell)
    assert shell("run", "mine.yaml", "-m", "train.seed=1,2").code == 0
    folders = [jobs["student"].config.teacher["path"] for _, _, jobs in shell.started]
    assert folders == ["outputs/mine/0/teacher/model", "outputs/mine/1/teacher/model"]
