"""New inputs for when data are scarce, made by a language model and labelled softly by the teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from datasets import Dataset

from distillkit.data.bad_rows import settle
from distillkit.data.checks import find_bad_rows
from distillkit.data.rows import Handling, Rows
from distillkit.errors import UserError
from distillkit.generation.base import SHARD_ROWS, at_least_one
from distillkit.generation.filters.base import SOURCE, Filter
from distillkit.generation.soft_labels import SoftLabels
from distillkit.models.live import LiveModel
from distillkit.reporting.console import notice
from distillkit.tasks.base import Row, Task

TEXTS = ("text", "text_pair")
ANSWERS = ("label", "labels", "score")
HOW = {True: "fill", False: "keep"}  # whether there are hard labels → what SoftLabels does about them


class Made(Protocol):
    """What makes inputs, ready for any of them."""

    def make(self, numbers: Sequence[int]) -> list[Row]:
        """Return the inputs that come of some numbers below `total`, in order; nothing else decides what they are."""
        ...

    def facts(self) -> dict[str, Any]:
        """Return what there is to tell of the work so far, such as requests, tokens and cost."""
        ...


class Maker(Protocol):
    """A `maker` node: a cheap constructor with the YAML arguments, and inputs."""

    of_rows: bool  # each number is a row's, of which the inputs are made

    def total(self, table: Dataset) -> int:
        """Return how many times inputs are made, of a split."""
        ...

    def open(self, table: Dataset, bad: frozenset[int], seed: int, teacher: LiveModel) -> Made:
        """Load what is needed.

        Args:
            table: The split.
            bad: Its rows that cannot be used.
            seed: Of all draws, with the number of what is made.
            teacher: Which will label; it tells the device.
        """
        ...


class NewInputs:
    """Make inputs, and ask the teacher, a classifier, for their logits.

    Args:
        maker: What makes them.
        split: The rows that it looks at.
        batch_size: Rows of a forward pass of the teacher.
        hard_labels: Also write the teacher's answer as a hard label; else new rows have none.
        originals: Also ask about the rows that inputs are made of, which keep their labels: then what is written is
            all that a student needs.
        seed: Of the draws.
        filters: name → filter that the rows pass through.
        shard_rows: Of what is made, so many pieces are written together, and are lost at most if the run is killed.
    """

    name = "inputs"
    required_columns = (("text",),)
    asks = None

    def __init__(
        self,
        maker: Maker,
        split: str = "train",
        batch_size: int = 64,
        hard_labels: bool = False,
        originals: bool = False,
        seed: int = 0,
        filters: dict[str, Filter | None] | None = None,
        shard_rows: int = SHARD_ROWS,
    ) -> None:
        self.maker = maker
        self.split = split
        self.labels = SoftLabels("train", batch_size, HOW[hard_labels])
        if originals and not maker.of_rows:
            raise UserError(
                "its inputs are not made of rows", where="generate.originals", fix="false, and mix datasets"
            )
        self.originals = originals
        self.seed = seed
        self.filters: Mapping[str, Filter | None] = filters or {}
        self.shard_rows = at_least_one(shard_rows, "generate.shard_rows")

    def check(self, task: Task) -> None:
        """Refuse a task whose rows are not labelled softly, or are no texts."""
        self.labels.check(task)
        if task.modality != "text":
            raise UserError(f"{task.name} reads no text", where="generate")

    def total(self, rows: Rows) -> int:
        """Return how many times inputs are made."""
        return self.maker.total(rows.split(self.split))

    def prepare(self, teacher: LiveModel | None, rows: Rows, task: Task) -> AskedForInputs:
        """Look for bad rows, and load what makes the inputs.

        Args:
            teacher: A classifier.
            rows: The dataset.
            task: Of the teacher.
        """
        assert teacher is not None
        table = rows.split(self.split)
        bad = find_bad_rows(table, task, None)
        place = partial(rows.where, self.split)
        note = settle(bad, len(table), place, rows.handling.on_bad_row, self.split)
        if note is not None:
            notice(note)
        made = self.maker.open(table, frozenset(bad), self.seed, teacher)
        if self.originals:
            made = WithOriginals(made, table, frozenset(bad))
        return AskedForInputs(self.labels, made, teacher, rows, task)


@dataclass(frozen=True)
class WithOriginals:
    """What makes inputs of rows, and these rows themselves.

    Attributes:
        made: What makes them.
        table: The rows.
        bad: Those that are passed over.
    """

    made: Made
    table: Dataset
    bad: frozenset[int]

    def make(self, numbers: Sequence[int]) -> list[Row]:
        """Return some rows with their labels, then what is made of them."""
        numbers = [number for number in numbers if number not in self.bad]
        names = [name for name in (*TEXTS, *ANSWERS) if name in self.table.column_names]
        rows = self.table.select(numbers).select_columns(names)
        own = [{**row, SOURCE: number} for number, row in zip(numbers, rows, strict=True)]
        return own + [{**dict.fromkeys(names), **row} for row in self.made.make(numbers)]

    def facts(self) -> dict[str, Any]:
        """Return what there is to tell of the work so far."""
        return self.made.facts()


@dataclass(frozen=True)
class AskedForInputs:
    """What makes inputs, and the teacher that labels them.

    Attributes:
        labels: How they are labelled.
        made: What makes them.
        teacher: A classifier.
        rows: The dataset.
        task: Of the teacher.
    """

    labels: SoftLabels
    made: Made
    teacher: LiveModel
    rows: Rows
    task: Task

    def answer(self, start: int, stop: int) -> list[dict[str, Any]]:
        """Return the inputs that come of the numbers `[start, stop)`, with their logits."""
        found = [row for row in self.made.make(range(start, stop)) if row["text"].strip()]
        if not found:
            return []
        labels = self.teacher.labels if self.task.has_classes else None
        rows = Rows(self.rows.name, {"train": Dataset.from_list(found)}, labels, handling=Handling(cache=False))
        return self.labels.prepare(self.teacher, rows, self.task).answer(0, len(found))

    def facts(self) -> dict[str, Any]:
        """Return what there is to tell of the work so far."""
        return self.made.facts()
