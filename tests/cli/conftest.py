"""A command line that runs in this process, in an empty folder, and records what it would start."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from distillkit import cli, launch

RECIPE = """\
# Mine.
# distillkit run mine.yaml
defaults:
  - config
  - override loss: kd
  - _self_
name: mine
dataset: {train: rows.csv}
student: {path: small}
train: {max_steps: 7}
"""


@dataclass
class Outcome:
    code: int
    out: str
    err: str


@dataclass
class Shell:
    """Runs command lines; `started` holds what would have run."""

    folder: Path
    capsys: pytest.CaptureFixture[str]
    started: list[tuple[Any, ...]] = field(default_factory=list)

    def __call__(self, *argv: str) -> Outcome:
        self.started.clear()
        code = cli.main(list(argv))
        return Outcome(code, *self.capsys.readouterr())

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    def files(self) -> set[str]:
        return {str(path.relative_to(self.folder)) for path in self.folder.rglob("*")}


@pytest.fixture
def shell(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "LOCAL_RANK", "DISTILLKIT_TRUST"):
        monkeypatch.delenv(name, raising=False)
    made = Shell(tmp_path, capsys)
    made.write("mine.yaml", RECIPE)
    monkeypatch.setattr(launch, "start", lambda *what: made.started.append(what))
    return made
