"""Bad input: one line on stderr that says where and what, exit code 2, nothing written."""

from __future__ import annotations

import pytest

from .conftest import Shell

HEAD = "# R.\n# distillkit train r.yaml\ndefaults: [config, _self_]\n"

COMMAND_LINES = [
    (["trian"], "unknown command 'trian'; did you mean 'train'?"),
    (["quickstart"], "did you mean 'distillkit run quickstart'?"),
    (["train", "quickstrat"], "unknown recipe 'quickstrat'; did you mean 'quickstart'?"),
    (["train", "nowhere/x.yaml"], "nowhere/x.yaml: no such recipe file"),
    (["train", "mine.yaml", "other"], "unexpected argument 'other'"),
    (["train", "mine.yaml", "-cn", "mine"], "give one of them"),
    (["train", "mine.yaml", "--multirnu"], "did you mean '--multirun'?"),
    (["train", "mine.yaml", "--cfg", "jobs"], "invalid choice: 'jobs'"),
    (["train", "mine.yaml", "--resolve"], "--resolve goes with --cfg"),
    (["train", "mine.yaml", "--config-dir", "nowhere"], "nowhere"),
    (["train", "mine.yaml", "train.max_stepz=3"], "train.max_stepz: unknown key; did you mean 'max_steps'?"),
    (["train", "mine.yaml", "+train.max_stepz=3"], "train.max_stepz: unknown key; did you mean 'max_steps'?"),
    (["train", "mine.yaml", "+compress.foo=3"], "compress.foo: unknown key"),
    (["train", "mine.yaml", "los=kd"], "los: unknown key; did you mean 'loss'?"),
    (["train", "mine.yaml", "+losss=kd"], "losss: unknown key; did you mean 'loss'?"),
    (["train", "mine.yaml", "loss=kdd"], "loss: no option 'kdd'; did you mean 'kd'?"),
    (["train", "mine.yaml", "train=smok", "--cfg", "job"], "train: no option 'smok'; did you mean 'smoke'?"),
    (["train", "mine.yaml", "train.max_steps=hot"], "train.max_steps: expected int, got 'hot'"),
    (["train", "mine.yaml", "train.learning_rate=hot"], "train.learning_rate: expected float, got 'hot'"),
    (
        ["train", "mine.yaml", "train.precision=fp8"],
        "train.precision: Invalid value 'fp8', expected one of [no, bf16, fp16]",
    ),
    (["train", "mine.yaml", "train.max_steps=[1"], "train.max_steps=[1: cannot read the override"),
    (["train", "mine.yaml", "train.max_steps=1,2"], "add -m to sweep"),
    (["train", "mine.yaml", "~train.nothing"], "'train.nothing' does not exist"),
    (["train", "mine.yaml", "student.path=???"], "student.path: needs a value; set student.path=…"),
    (["train", "mine.yaml", "student.path=${nothing}"], "student.path: Interpolation key 'nothing' not found"),
    (["train", "mine.yaml", "name=${output_dir}"], "Recursive interpolation detected"),
    (["train", "mine.yaml", "--cfg", "job", "--resolve", "name=${nothing}"], "Interpolation key 'nothing' not found"),
    (["train", "mine.yaml", "-m", "train.seed=1,hot"], "train.seed: expected int, got 'hot'"),
    (["train", "mine.yaml", "-m", "train.seed=1,2", "+train.foo=3"], "train.foo: unknown key"),
    (["run", "mine.yaml"], "stages: no stages"),
    (["completion", "bahs"], "unknown shell 'bahs'; did you mean 'bash'?"),
]

RECIPES = [
    (HEAD + "train: {max_stepz: 3}\n", "r.yaml: train.max_stepz: unknown key; did you mean 'max_steps'?"),
    (HEAD + "trian: {max_steps: 3}\n", "r.yaml: trian: unknown key; did you mean 'train'?"),
    (HEAD + "train: {max_steps: hot}\n", "r.yaml: train.max_steps: expected int, got 'hot'"),
    (HEAD + "train: 3\n", "r.yaml: "),
    (HEAD + "train: {max_steps: 3\nname: x\n", "r.yaml:5: broken YAML"),
    (HEAD + "name: x\nname: y\n", "r.yaml:5: broken YAML: found duplicate key name"),
    (HEAD + "name: ${nothing}\n", "name: Interpolation key 'nothing' not found"),
    ("defaults: [config, {override los: kd}, _self_]\n", "r.yaml: no config group 'los'; did you mean 'loss'?"),
    ("defaults: [config, {override loss: kdd}, _self_]\n", "loss: no option 'kdd'; did you mean 'kd'?"),
    ("defaults: [confg, _self_]\n", "no config 'confg'"),
    ("- a\n- b\n", "must be a DictConfig"),
    ("name: alone\n", "begin it with defaults: [config, _self_]"),
]

STAGES = [
    ("s: {command: trian}", "stages.s.command: unknown command 'trian'; did you mean 'train'?"),
    ("s: {choose: {los: kd}}", "stages.s.choose.los: no config group 'los'; did you mean 'loss'?"),
    ("s: {choose: {loss: kdd}}", "stages.s.choose.loss: no option 'kdd'; did you mean 'kd'?"),
    ("s: {set: {trian: {seed: 1}}}", "stages.s.set.trian: unknown key; did you mean 'train'?"),
    ("s: {set: {train: {sed: 1}}}", "stages.s.set.train.sed: unknown key; did you mean 'seed'?"),
    ("s: {set: {train: {seed: hot}}}", "stages.s.set.train.seed: expected int, got 'hot'"),
    ("s: {set: {dataset: {train: '${nothing}'}}}", "stages.s: dataset.train: Interpolation key 'nothing' not found"),
    ("s: {comand: train}", "stages.s.comand: unknown key; did you mean 'command'?"),
    ("s: {choose: {student: pretrained}}", "stages.s: student.path: needs a value"),
]


def check(shell: Shell, argv: list[str], expected: str) -> None:
    before = shell.files()
    result = shell(*argv)
    assert result.code == 2, result
    assert result.err.startswith("distillkit: error: ")
    assert result.err.count("\n") == 1
    assert expected in result.err
    assert shell.started == []
    assert shell.files() == before


@pytest.mark.parametrize(("argv", "expected"), COMMAND_LINES, ids=[" ".join(argv) for argv, _ in COMMAND_LINES])
def test_on_the_command_line(shell: Shell, argv: list[str], expected: str) -> None:
    check(shell, argv, expected)


@pytest.mark.parametrize(("text", "expected"), RECIPES, ids=[expected for _, expected in RECIPES])
def test_in_a_recipe(shell: Shell, text: str, expected: str) -> None:
    shell.write("r.yaml", text)
    check(shell, ["train", "r.yaml", "dataset.train=x.csv"] if "config," in text else ["train", "r.yaml"], expected)


@pytest.mark.parametrize(("stages", "expected"), STAGES, ids=[stages for stages, _ in STAGES])
def test_in_a_stage(shell: Shell, stages: str, expected: str) -> None:
    recipe = shell.folder / "mine.yaml"
    recipe.write_text(recipe.read_text(encoding="utf-8") + f"stages:\n  {stages}\n", encoding="utf-8")
    check(shell, ["run", "mine.yaml"], expected)


@pytest.mark.parametrize("name", ["config.yaml", "mine.yml"])
def test_a_recipe_file_that_hydra_could_not_tell_apart_is_refused(shell: Shell, name: str) -> None:
    shell.write(name, HEAD)
    check(shell, ["train", f"./{name}"], "rename it")


def test_eval_asks_for_no_student(shell: Shell) -> None:
    assert shell("eval", "dataset.train=x.csv").code == 0
    assert shell("train", "dataset.train=x.csv").err.startswith("distillkit: error: student.path: needs a value")


def test_a_failed_sweep_keeps_what_was_there(shell: Shell) -> None:
    shell.write("outputs/mine/0/model.txt", "precious")
    before = shell.files()
    assert shell("train", "mine.yaml", "-m", "train.seed=1,2", "+train.foo=1").code == 2
    assert before <= shell.files()
    assert (shell.folder / "outputs/mine/0/model.txt").read_text(encoding="utf-8") == "precious"
