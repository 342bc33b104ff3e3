"""Soft labels: the teacher's logits for every row of a split."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from distillkit.data.encode import encode
from distillkit.data.rows import Rows
from distillkit.errors import UserError
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
    """

    name = "soft_labels"
    required_columns = (("text",), ("image",))

    def __init__(self, split: str = "train", batch_size: int = 64, labels: str = "keep") -> None:
        if labels not in LABELS:
            raise UserError(f"must be one of {', '.join(LABELS)}, got '{labels}'", where="generate.labels")
        if batch_size < 1:
            raise UserError(f"must be at least 1, got {batch_size}", where="generate.batch_size")
        self.split = split
        self.batch_size = batch_size
        self.labels = labels

    def check(self, task: Task) -> None:
        """Refuse a task whose rows have more than one answer, or none of a fixed size."""
        if not task.soft_labels:
            fix = "use teacher=live" if task.adds_head else "use generate=text"
            raise UserError(f"{task.name} has no soft labels to write", where="generate", fix=fix)

    def total(self, rows: Rows) -> int:
        """Return how many rows will be asked about."""
        return len(rows.split(self.split))

    @torch.no_grad()
    def __call__(self, teacher: LiveModel, rows: Rows, share: slice) -> Iterator[list[dict[str, Any]]]:
        """Yield finished rows, batch by batch in order.

        Args:
            teacher: A classifier.
            rows: The dataset.
            share: Which of the split's rows this process answers.
        """
        table = rows.split(self.split)
        task = teacher.task
        column = task.label_column or "label"
        data = encode(rows, self.split, task, teacher.tokenizer, teacher.labels if task.has_classes else None)
        origins = data.origins  # rows that were skipped or left out get no answer
        mine = np.flatnonzero(np.isin(origins, np.arange(len(table))[share]))
        for start in range(0, len(mine), self.batch_size):
            indices = mine[start : start + self.batch_size]
            logits = teacher(data.batch(indices).to(teacher.device)).logits
            assert logits is not None
            values = logits.rows(0, len(logits)).float().cpu()
            answers = task.decide(values, teacher.labels)
            yield [
                row | {column: self._label(row.get(column), answer), "teacher_logits": scores}
                for row, answer, scores in zip(table.select(origins[indices]), answers, values.tolist(), strict=True)
            ]

    def _label(self, own: Any, answer: Any) -> Any:
        return answer if self.labels == "replace" or (self.labels == "fill" and own is None) else own
