"""What it took to have prompts answered: requests, tokens and cost, over all processes and runs of a folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

WORK = "work.jsonl"  # one line for each process that ended, however it did


@runtime_checkable
class Accounts(Protocol):
    """What knows how much work it was: `Asked` of a backend that costs something."""

    def facts(self) -> dict[str, Any]:
        """Return counts so far; empty if there is nothing to tell."""
        ...


def record(folder: Path, asked: object) -> None:
    """Append the account of one process."""
    facts = asked.facts() if isinstance(asked, Accounts) else {}
    if facts and folder.is_dir():
        with (folder / WORK).open("a", encoding="utf-8") as file:
            file.write(json.dumps(facts) + "\n")


def total(folder: Path) -> dict[str, Any]:
    """Add up the accounts of all processes: numbers are summed, of words the last one stays."""
    summed: dict[str, Any] = {}
    path = folder / WORK
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        facts: Mapping[str, Any] = json.loads(line)
        for name, value in facts.items():
            summed[name] = value if isinstance(value, str) else summed.get(name, 0) + value
    return summed
