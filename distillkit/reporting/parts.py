"""The parts of a report: what each command or stage found, where it wrote, and the colours of the models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Part:
    """What one command found, and where it wrote."""

    name: str
    command: str
    result: dict[str, Any]
    folder: Path


@dataclass
class Colours:
    """Which series a model is, the same all over the page: models are told apart by where they lie."""

    taken: dict[str, int] = field(default_factory=dict)

    def of(self, path: str) -> int:
        """Return the series of what lies at a path; a stage's may lack the folder of the run."""
        known = (number for other, number in self.taken.items() if other == path or other.endswith(f"/{path}"))
        return self.taken.setdefault(path, next(known, len(self.taken)))


def find_parts(folder: Path, report: Mapping[str, Any]) -> Iterator[Part]:
    """Yield the stages of a run, or the commands of a folder."""
    if "run" in report:
        for name, result in report["run"]["stages"].items():
            yield Part(name, result["command"], result, folder / name)
        return
    for command, result in report.items():
        yield Part(command, command, result, folder)
