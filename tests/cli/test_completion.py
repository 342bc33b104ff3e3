"""Completion: candidates for the word under the cursor, and the script at work in a real bash."""

from __future__ import annotations

import os
import pty
import select
import shutil
import sys
import time
from pathlib import Path

import pytest

from distillkit.arguments import COMMANDS, recipe_files

from .conftest import Shell

ROOT = Path(__file__).parents[2]


def complete(shell: Shell, *words: str) -> list[str]:
    result = shell("complete", *words)
    assert (result.code, result.err) == (0, "")
    return result.out.split()


def test_commands_recipes_and_flags(shell: Shell) -> None:
    assert set(COMMANDS) <= set(complete(shell, ""))
    assert complete(shell, "ev") == ["eval"]
    assert set(recipe_files()) <= set(complete(shell, "train", ""))
    assert complete(shell, "train", "./mi") == ["./mine.yaml"]
    assert complete(shell, "train", "mine") == ["mine.yaml"]
    assert complete(shell, "train", "--config-dir", ".", "mine") == ["mine", "mine.yaml"]
    assert complete(shell, "train", "mine.yaml", "--res") == ["--resolve"]
    assert complete(shell, "train", "--cfg", "j") == ["job"]
    assert complete(shell, "completion", "z") == ["zsh"]


def test_keys_groups_and_values(shell: Shell) -> None:
    assert complete(shell, "train", "train.max_s") == ["train.max_steps="]
    assert {"loss=", "loss."} <= set(complete(shell, "train", "los"))
    assert {"loss=hard", "loss=kd"} <= set(complete(shell, "train", "loss="))
    assert complete(shell, "train", "train.schedule=c") == ["train.schedule=constant", "train.schedule=cosine"]
    assert complete(shell, "train", "train.keep_best=") == ["train.keep_best=false", "train.keep_best=true"]
    assert complete(shell, "train", "nonsense=1", "train.max_s") == []


def test_the_recipe_and_the_words_before_decide(shell: Shell) -> None:
    assert complete(shell, "train", "mine.yaml", "train.max_steps=") == ["train.max_steps=7"]
    assert complete(shell, "train", "mine.yaml", "loss.terms.k") == ["loss.terms.kd."]
    assert complete(shell, "train", "mine.yaml", "loss=hard", "loss.terms.k") == []


@pytest.mark.parametrize("name", ["bash", "zsh", "fish"])
def test_the_scripts_parse(shell: Shell, name: str) -> None:
    found = shutil.which(name)
    script = shell.write("script", shell("completion", name).out)
    assert "distillkit" in script.read_text(encoding="utf-8")
    if found is None:
        pytest.skip(f"no {name} here")
    assert os.spawnv(os.P_WAIT, found, [name, "-n", str(script)]) == 0


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
def test_bash_completes_at_the_prompt(tmp_path: Path) -> None:
    program = tmp_path / "distillkit"
    program.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" -m distillkit "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    child, terminal = pty.fork()
    if child == 0:
        os.environ.update(PATH=f"{tmp_path}:{os.environ['PATH']}", TERM="dumb", PS1="> ")
        os.execvp("bash", ["bash", "--norc", "--noprofile", "-i"])
    try:
        type_and_wait(terminal, 'eval "$(distillkit completion bash)"; echo rea""dy\n', "ready")
        type_and_wait(terminal, "distillkit tra\t", "distillkit train ")
        type_and_wait(terminal, "train.schedule=cosi\t", "train.schedule=cosine ")
        type_and_wait(terminal, "train=smo\t", "train=smoke ")
        type_and_wait(terminal, "train.max_st\t", "train.max_steps=")
    finally:
        os.close(terminal)
        os.waitpid(child, 0)


def type_and_wait(terminal: int, text: str, expected: str) -> None:
    os.write(terminal, text.encode())
    seen, deadline = "", time.monotonic() + 30
    while expected not in seen:
        assert select.select([terminal], [], [], max(0.0, deadline - time.monotonic()))[0], f"only saw {seen!r}"
        seen += os.read(terminal, 4096).decode()
