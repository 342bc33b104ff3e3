"""Every command of the README is run, cut to a few steps, in a folder where the hub's names are tiny local models.

Those that start several processes start one here; tests/distributed is about several. Blocks marked sh need a server or
a large model: their commands are only put together.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from distillkit.commands import doctor
from distillkit.diagnosis.collectives import Collectives
from tests.terminal import distillkit

from .test_doctor import SPEED

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
INLINE = {  # commands between the lines, and what sees to them
    "distillkit run quickstart": "test_recipes",
    "distillkit recipes": "below",
    'eval "$(distillkit completion bash)"': "tests/cli/test_completion",
}
SHORT = {
    "train": ["train.max_steps=2", "train.learning_rate=0.01"],
    "generate-pseudo": [],
    "compress": ["compress.steps.retrain.train.max_steps=2", "evaluate.speed=false", "evaluate.resamples=0"],
    "eval": ["evaluate.speed_rounds=1", "evaluate.resamples=100"],
    "run": ["train.max_steps=2", "evaluate.speed=false", "evaluate.resamples=0", "compress.check_reload=false"],
    "recipes": [],
    "doctor": [],
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def commands(language: str = "bash") -> list[str]:
    lines = "\n".join(blocks(language)).replace("\\\n", " ").splitlines()
    return [line for line in lines if shlex.split(line, comments=True)]


def run(line: str, patch: pytest.MonkeyPatch) -> None:
    """Run one line of a shell block.

    Raises:
        AssertionError: It fails, or is of a kind that nothing here knows how to run.
    """
    words = shlex.split(line, comments=True)
    if words[0] == "export":
        for assignment in words[1:]:
            name, value = assignment.split("=", 1)
            patch.setenv(name, value)
            if name == "PYTHONPATH":
                patch.syspath_prepend(str(Path(value).resolve()))
    elif words[0] == "distillkit" and words[1] in SHORT:
        short = [] if "--cfg" in words else SHORT[words[1]]
        again = "sst2" in words or "dataset.columns.text=review" in words
        if again and words[1] == "run" and short:  # exporting takes longest: the first `classify` does it
            short = [*short, "compress=prune", "~stages.eval.set.evaluate.models.int8"]
        fewer = [word.replace("=4", "=1") for word in words if word.startswith("launch.num_processes=")]
        fewer += ["hydra.sweeper.trials=2"] if "hydra/sweeper=optuna" in words else []
        result = distillkit(*words[1:], *short, *fewer)
        assert (result.code, result.err) == (0, ""), f"{line}\n{result.err}"
    elif words[:3] == ["torchrun", "--nproc-per-node", "4"]:
        script = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "1", *words[3:]]
        script += [*SHORT["train"], "train.seed=1", "overwrite=true"]  # not the run that is finished already
        env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(script, env=env, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
    elif words[0] == "bash":
        assert (ROOT / words[1]).is_file(), line
    elif words[:3] == ["pip", "install", "-e"]:
        extra = words[3].removeprefix(".[").removesuffix("]")
        assert extra in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    else:
        assert words[:2] == ["git", "clone"], f"no test knows how to run: {line}"


def test_every_command_in_the_order_of_the_readme(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "DISTILLKIT_TRUST", "PYTHONPATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(doctor, "measure_speed", lambda _: SPEED)  # tests/unit/test_diagnosis measures
    monkeypatch.setattr(doctor, "try_collectives", lambda _: Collectives(2, "gloo", 1e-4, 1e9))
    (desk / "mylosses.py").write_text(next(b for b in blocks("python") if "mylosses.py" in b), encoding="utf-8")
    assert len(commands()) > 15
    for line in commands():
        run(line, monkeypatch)
    for name in ("teacher", "student", "from-soft", "mine", "sst2", "sst2/distilled", "sst2-6/alone"):
        assert (desk / "outputs" / name / "model/model.safetensors").is_file()
    for report in ("classify", "small", "compare"):
        assert "int8" in (desk / "outputs" / report / "report.md").read_text(encoding="utf-8")
    for block in blocks("python"):
        if "mylosses.py" not in block:
            exec(block, {})


@pytest.mark.parametrize("line", commands("sh"))
def test_what_is_only_put_together(desk: Path, line: str) -> None:
    result = distillkit(*shlex.split(line, comments=True)[1:], "--cfg", "job", "--resolve")
    assert (result.code, result.err) == (0, "")


def test_commands_between_the_lines() -> None:
    inline = [code for code in re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", README, flags=re.DOTALL))]
    assert {code for code in inline if "distillkit " in code} == set(INLINE)
    listed = distillkit("recipes").out
    table = README.split("| recipe | what it does |")[1].split("\n\n")[0]
    described = re.findall(r"^\| `(\w+)`", table, flags=re.MULTILINE)
    assert sorted(described) == sorted(re.findall(r"^(\w+)", listed, flags=re.MULTILINE))
