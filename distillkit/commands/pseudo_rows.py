"""What `generate-pseudo` makes of generated rows: the ones that pass the filters, as a dataset."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from distillkit.cache.shards import Shards, writing
from distillkit.data.rows import Rows
from distillkit.generation.base import Generator
from distillkit.generation.filters.base import Given
from distillkit.generation.refine import Refined, check, refine
from distillkit.generation.writer import common, to_table
from distillkit.models.live import LiveModel
from distillkit.reporting.filters import filters_markdown
from distillkit.tasks.base import Task

SHOWN = 3  # examples in the terminal


@dataclass(frozen=True)
class Made:
    """What came of a run.

    Attributes:
        facts: What report.json keeps beside what every run has.
        text: One line about it.
        details: What report.md says more.
        examples: Lines for the terminal.
    """

    facts: dict[str, Any]
    text: str
    details: str = ""
    examples: tuple[str, ...] = ()


class PseudoRows:
    """Rows for a dataset config.

    Args:
        folder: Of the run.
        generate: What makes them.
        rows: What the teacher is asked about.
        task: Of the teacher.
        live: The teacher; None where another answers.
    """

    def __init__(self, folder: Path, generate: Generator, rows: Rows, task: Task, live: LiveModel | None) -> None:
        self.folder = folder / "pseudo"
        self.generate = generate
        self.labels = live.labels if live is not None and task.has_classes else None
        self.column = task.label_column
        self.given = Given(rows, generate.split, None if live is None else live.tokenizer, folder)
        check(generate.filters, self.given)
        self.shards = Shards(folder / "generated", generate.total(rows), generate.shard_rows)

    def write(self, number: int, answers: list[dict[str, Any]] | pa.Table) -> None:
        """Write the answers of a shard."""
        table = answers if isinstance(answers, pa.Table) else to_table(answers, self.labels, self.column)
        self.shards.write(number, table)

    def finish(self, facts: Mapping[str, Any], settings: Mapping[str, Any]) -> Made:
        """Pass the rows of all shards through the filters.

        Args:
            facts: What the description of the folder says.
            settings: Of the generator, likewise.
        """
        numbers = range(len(self.shards))
        schema = common(map(self.shards.schema, numbers), self.labels, self.column)
        about = {**facts, "settings": dict(settings), "labels": self.labels}
        with writing(self.folder):
            found = refine(self.shards.batches(), self.generate.filters, self.folder, schema, self.given, about)
        source = f"{facts['teacher']} over {facts['dataset']}"
        counts = {**found.counts(), "rejects": found.rejects(), "judges": found.facts}
        return Made(
            facts={**counts, "folder": str(self.folder)},
            text=f"{found.kept:,} rows from {source}{_losses(found)}, in {self.folder}",
            details=filters_markdown(counts),
            examples=tuple(f"  {_shorten(row)}" for row in found.shown[:SHOWN]),
        )


def _losses(found: Refined) -> str:
    parts = [f"{count:,} rejected by {name}" for name, count in found.rejected.items() if count]
    return "".join(f"; {part}" for part in parts)


def _shorten(row: Mapping[str, Any]) -> str:
    parts = []
    for name, value in row.items():
        numbers = isinstance(value, list) and all(isinstance(number, float) for number in value)
        text = f"[{', '.join(f'{number:.2f}' for number in value[:4])}]" if numbers else str(value)
        parts.append(f"{name}: {text[:70]!r}" if isinstance(value, str) else f"{name}: {text[:70]}")
    return " · ".join(parts)
