"""Help, recipes, flags anywhere, sweeps, and what is imported on the way."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from distillkit import __version__
from distillkit.arguments import COMMANDS, recipe_files
from distillkit.errors import UserError

from .conftest import Shell

ROOT = Path(__file__).parents[2]


def python(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", code], cwd=folder, env=env, capture_output=True, text=True, check=True)


def test_help_names_every_command_and_imports_only_the_standard_library(tmp_path: Path) -> None:
    code = (
        "import sys; from distillkit.cli import main; main(['--help']); main(['train', '--help']); main(['recipes']);"
        "print(*sorted({'hydra', 'omegaconf', 'yaml', 'torch', 'transformers'} & set(sys.modules)), file=sys.stderr)"
    )
    result = python(code, tmp_path)
    assert result.stderr.strip() == ""
    assert all(command in result.stdout for command in COMMANDS)


def test_composing_a_config_does_not_import_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from distillkit.cli import main; main(['train', '--cfg', 'job']);"
        "print('torch' in sys.modules, 'hydra' in sys.modules, file=sys.stderr)"
    )
    result = python(code, tmp_path)
    assert result.stderr.split() == ["False", "True"]
    assert yaml.safe_load(result.stdout)["train"]["seed"] == 42


def test_python_m_distillkit_is_distillkit(tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    argv = [sys.executable, "-m", "distillkit", "trian"]
    result = subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr == "distillkit: error: unknown command 'trian'; did you mean 'train'?\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help(shell: Shell, command: str) -> None:
    result = shell(command, "--help")
    assert result.code == 0
    assert COMMANDS[command] in result.out


def test_help_with_a_recipe_shows_the_composed_config(shell: Shell) -> None:
    result = shell("train", "mine.yaml", "--help")
    assert result.code == 0
    assert "max_steps: 7" in result.out
    assert "\nloss: " in result.out


def test_version(shell: Shell) -> None:
    assert shell("--version").out == shell("train", "--version").out == f"distillkit {__version__}\n"


def test_recipes_lists_purpose_and_command(shell: Shell) -> None:
    listed = shell("recipes").out
    for name, path in recipe_files().items():
        purpose, command = path.read_text(encoding="utf-8").splitlines()[:2]
        assert f"{name:<16} {purpose.lstrip('# ')}" in listed
        assert f"{command.lstrip('# ')}\n" in listed


@pytest.mark.parametrize("name", recipe_files())
def test_every_recipe_composes(shell: Shell, name: str) -> None:
    result = shell("run", name, "--cfg", "job")
    assert (result.code, result.err) == (0, "")


@pytest.mark.parametrize(
    "argv",
    [
        ["train", "mine.yaml", "train.seed=3", "--cfg", "job", "--resolve", "name=other"],
        ["train", "--cfg", "job", "name=other", "mine.yaml", "--resolve", "train.seed=3"],
        ["train", "--resolve", "-c", "job", "-cd", ".", "-cn", "mine", "name=other", "train.seed=3"],
        ["train", "name=other", "--config-dir=.", "mine", "--cfg=job", "train.seed=3", "--resolve"],
    ],
)
def test_flags_and_recipe_may_stand_anywhere(shell: Shell, argv: list[str]) -> None:
    shown = yaml.safe_load(shell(*argv).out)
    assert (shown["name"], shown["train"]["max_steps"], shown["train"]["seed"]) == ("other", 7, 3)
    assert shown["output_dir"] == shown["root_dir"] == "outputs/other"


def test_the_last_override_wins_and_order_is_kept(shell: Shell) -> None:
    shell("train", "train.seed=1", "mine.yaml", "--run", "train.seed=2")
    assert shell.started[0][1].train.seed == 2


def test_an_override_may_be_longer_than_the_name_of_a_file(shell: Shell) -> None:
    shell("train", "mine.yaml", f"name={'x' * 300}")
    assert shell.started[0][1].name == "x" * 300


def test_a_run_starts_the_command_with_a_typed_config_and_writes_nothing(shell: Shell) -> None:
    before = shell.files()
    assert shell("train", "mine.yaml").code == 0
    [(command, config)] = shell.started
    assert command == "train"
    assert config.student == {"_target_": "distillkit.models.students.Pretrained", "path": "small"}
    assert config.train.max_steps == 7
    assert shell.files() == before


def test_one_minus_is_exact_in_decimals(shell: Shell) -> None:
    shell("train", "mine.yaml", "loss.alpha=0.1")
    terms = shell.started[0][1].loss["terms"]
    assert (terms["hard"]["weight"], terms["kd"]["weight"]) == (0.1, 0.9)


def test_groups_beside_a_recipe_and_in_a_config_dir_are_found(shell: Shell) -> None:
    shell.write("lab/student/mini.yaml", "_target_: distillkit.models.students.Pretrained\npath: mini\n")
    shell.write(
        "lab/exp.yaml", "# Exp.\ndefaults: [config, {override student: mini}, _self_]\ndataset: {train: x.csv}\n"
    )
    assert shell("train", "lab/exp.yaml").code == 0
    assert shell.started[0][1].student["path"] == "mini"
    assert shell("train", "mine.yaml", "student=mini", "--config-dir", "lab", "student.path=other").code == 0
    assert shell.started[0][1].student["path"] == "other"


def test_a_sweep_gives_each_job_a_folder_of_its_own(shell: Shell) -> None:
    assert shell("train", "mine.yaml", "train.seed=1,2", "-m").code == 0
    jobs = [config for _, config in shell.started]
    assert [(job.train.seed, job.output_dir, job.root_dir) for job in jobs] == [
        (1, "outputs/mine/0", "outputs/mine/0"),
        (2, "outputs/mine/1", "outputs/mine/1"),
    ]


def test_info_shows_where_configs_come_from(shell: Shell) -> None:
    code = "from distillkit.cli import main; main(['train', 'mine.yaml', '--info', 'searchpath'])"
    assert str(shell.folder) in python(code, shell.folder).stdout


def test_an_error_inside_a_command_is_one_line(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise UserError("no such file", where="dataset.train", fix="look again")

    monkeypatch.setattr("distillkit.launch.start", refuse)
    result = shell("train", "mine.yaml")
    assert (result.code, result.err) == (2, "distillkit: error: dataset.train: no such file; look again\n")
    shown = shell("train", "mine.yaml", "--traceback").err
    assert "Traceback" in shown
    assert "refuse" in shown


def test_a_bug_shows_its_traceback(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distillkit.launch.start", lambda *_: 1 / 0)
    result = shell("train", "mine.yaml")
    assert result.code == 1
    assert result.err.rstrip().endswith("ZeroDivisionError: division by zero")


def test_ctrl_c_is_one_line(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("distillkit.launch.start", interrupt)
    result = shell("train", "mine.yaml")
    assert (result.code, result.err) == (130, "distillkit: interrupted\n")


def test_only_the_first_of_several_processes_reports_bad_input(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    result = shell("train", "mine.yaml", "train.sed=1")
    assert (result.code, result.err) == (2, "")
