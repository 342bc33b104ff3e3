"""Configs that are wrong in any way are refused in one line, and nothing outside the trusted packages runs."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from distillkit import cli, launch
from distillkit.freeze import freeze
from tests.tiny import classifier, data_files, save

COUNT = int(os.environ.get("DISTILLKIT_MUTATIONS", "60"))
GROUPS = ["task=sequence_classification", "teacher=live", "student=from_teacher", "loss=kd"]
SETTINGS = [
    "dataset.path=data",
    "dataset.cache=false",
    "teacher.path=teacher",
    "student.layers=1",
    "task.max_length=32",
]
SETTINGS += ["train.max_steps=1", "train.batch_size=4", "output_dir=out"]
HOSTILE = [
    "os.system",
    "builtins.eval",
    "builtins.exec",
    "subprocess.Popen",
    "torch.load",
    "shutil.copy",
    "pathlib.Path",
]
HOSTILE += ["distillkit.errors.os.system", "distillkit.data.files.Path", "distillkit.losses.objective.torch.load"]
HOSTILE += ["distillkit.data.files.FileDataset.load", "distillkit..x", "distillkit.nope.X", ".", "", "a" * 5000]
VALUES: list[Any] = [None, True, -1, 0, 1e308, float("nan"), float("inf"), 10**30, "", "x", "\x00", "../../etc/passwd"]
VALUES += [[], [1, 2], {}, {"a": 1}, {"_target_": "os.system", "command": "touch CANARY"}, "💥" * 50]
VALUES += ["${train}", "${nope.x}", "${oc.env:HOME}", "${oc.decode:__import__}", "???"]


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A folder with data and a teacher; returns a config that works."""
    monkeypatch.chdir(tmp_path)
    data_files(Path("data"))
    save(classifier(layers=2), Path("teacher"))
    frozen: list[Any] = []
    with monkeypatch.context() as patch:
        patch.setattr(launch, "run", lambda _, config: frozen.append(config))
        assert cli.main(["train", *GROUPS, *SETTINGS]) == 0
    config = yaml.safe_load(freeze(frozen[0]))
    return {key: value for key, value in config.items() if key not in ("root_dir", "upstream")}


def places(node: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if at:
        yield at
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, child in children:
        yield from places(child, (*at, key))


def within(node: Any, at: tuple[Any, ...]) -> Any:
    for key in at:
        node = node[key]
    return node


def mutated(config: dict[str, Any], draw: random.Random) -> dict[str, Any]:
    """Replace, remove or add something, one to three times."""
    config = deepcopy(config)
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        kind = draw.choice(["value", "value", "value", "delete", "add", "target", "loop", "deep"])
        everywhere = [at for at in places(config) if kind != "target" or at[-1] == "_target_"]
        if not everywhere:
            continue
        *outer, key = draw.choice(everywhere)
        parent = within(config, tuple(outer))
        if kind == "delete":
            del parent[key]
        elif kind == "loop":
            parent[key] = f"${{{'.'.join(map(str, [*outer, key]))}}}"
        elif kind == "add" and isinstance(parent, dict):
            parent[draw.choice(["extra", "_args_", "_partial_", "_convert_", "__class__"])] = draw.choice(VALUES)
        elif kind == "deep" and draw.random() < 0.3:
            parent[key] = yaml.safe_load("{a: " * 150 + "1" + "}" * 150)
        else:
            parent[key] = draw.choice(HOSTILE if kind == "target" else VALUES)
            if kind == "target":
                parent["command"] = "touch CANARY"
    return config


def test_mutated_configs_give_one_line_or_work(desk: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    header = ["# Mutated.", "# distillkit run mutated.yaml", "defaults:", "  - config"]
    header += [f"  - override {group.replace('=', ': ')}" for group in GROUPS] + ["  - _self_", ""]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    codes = []
    for seed in range(COUNT):
        text = yaml.safe_dump(mutated(desk, random.Random(seed)), allow_unicode=True)
        Path("mutated.yaml").write_text("\n".join(header) + text, encoding="utf-8")
        code = cli.main(["train", "mutated.yaml", "overwrite=true"])
        codes.append(code)
        error = capsys.readouterr().err
        assert code in (0, 2), (seed, error)
        lines = [line for line in error.splitlines() if line.strip() and "Warning" not in line]
        assert len(lines) == (code == 2), (seed, error)
        assert len(error) < 1500, seed
        assert not list(Path().rglob("CANARY")), seed
    torch.set_num_threads(threads)
    assert codes.count(2) > COUNT / 2
