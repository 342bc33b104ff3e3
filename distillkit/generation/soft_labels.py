"""Soft labels: the teacher's logits for every row of a split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from distillkit.data.batches import by_length
from distillkit.data.encode import Encoded, encode
from distillkit.data.rows import Rows
from distillkit.errors import UserError
from distillkit.generation.base import SHARD_ROWS, at_least_one, ordered_origins
from distillkit.generation.filters.base import Filter
from distillkit.models.live import LiveModel
from distillkit.tasks.base import Task

LABELS = ("keep", "fill", "replace")


class SoftLabels:
    """Ask a teacher for the logits (or the score) of each row; rows keep their columns and gain `teacher_logits`.

    Args:
        split: Which rows.
        batch_size: Rows of a forward pass.
        labels: What becomes of the hard labels: "keep" them, "fill" missing ones with the teacher's answer, or
            "replace" all by it.
        filters: name → filter that the rows pass through.
        shard_rows: Rows that are written together, and are lost at most if the run is killed.
    """

    name = "soft_labels"
    required_columns = (("text",), ("image",))

    asks = None

    def __init__(
        self,
        split: str = "train",
        batch_size: int = 64,
        labels: str = "keep",
        filters: dict[str, Filter | None] | None = None,
        shard_rows: int = SHARD_ROWS,
    ) -> None:
        if labels not in LABELS:
            raise UserError(f"must be one of {', '.join(LABELS)}, got '{labels}'", where="generate.labels")
        self.split = split
        self.batch_size = at_least_one(batch_size, "generate.batch_size")
        self.labels = labels
        self.filters: Mapping[str, Filter | None] = filters or {}
        self.shard_rows = at_least_one(shard_rows, "generate.shard_rows")

    def check(self, task: Task) -> None:
        """Refuse a task whose rows have more than one answer, or none of a fixed size."""
        if not task.soft_labels:
            fix = "use teacher=live" if task.adds_head else "use generate=text"
            raise UserError(f"{task.name} has no soft labels to write", where="generate", fix=fix)

    def total(self, rows: Rows) -> int:
        """Return how many rows will be asked about."""
        return len(rows.split(self.split))

    def prepare(self, teacher: LiveModel | None, rows: Rows, task: Task) -> AskedForLabels:
        """Encode the split.

        Args:
            teacher: A classifier.
            rows: The dataset.
            task: Of the teacher.
        """
        assert teacher is not None
        data = encode(rows, self.split, task, teacher.tokenizer, teacher.labels if task.has_classes else None)
        return AskedForLabels(self, teacher, rows.split(self.split), data, ordered_origins(data))


@dataclass(frozen=True)
class AskedForLabels:
    """A classifier and the rows that it labels.

    Attributes:
        generator: With the settings.
        teacher: The classifier.
        table: The split.
        data: Its rows, encoded: those that were skipped or left out get no answer.
        origins: int64 `[encoded rows]`, ascending: the row of the split that each was made of.
    """

    generator: SoftLabels
    teacher: LiveModel
    table: Dataset
    data: Encoded
    origins: np.ndarray

    @torch.no_grad()
    def answer(self, start: int, stop: int) -> list[dict[str, Any]]:
        """Return the rows `[start, stop)` of the split with their labels, in order."""
        task, column = self.teacher.task, self.teacher.task.label_column or "label"
        first, last = np.searchsorted(self.origins, (start, stop))
        answers: list[Any] = [None] * (last - first)
        scores: list[list[float]] = [[]] * (last - first)
        for batch in by_length(self.data.lengths[first:last], self.generator.batch_size):
            asked = np.resize(batch, max(len(batch), 2))  # the last bit of a product of one row depends on its address
            logits = self.teacher(self.data.batch(first + asked).to(self.teacher.device)).logits
            assert logits is not None
            values = logits.rows(0, len(batch)).float().cpu()
            for index, answer, row in zip(
                batch, task.decide(values, self.teacher.labels), values.tolist(), strict=True
            ):
                answers[index], scores[index] = answer, row
        own = self.table.select(self.origins[first:last])
        return [
            row | {column: self._label(row.get(column), answer), "teacher_logits": score}
            for row, answer, score in zip(own, answers, scores, strict=True)
        ]

    def _label(self, own: Any, answer: Any) -> Any:
        labels = self.generator.labels
        return answer if labels == "replace" or (labels == "fill" and own is None) else own
