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
    """Ask a classifier for its logits; rows keep their columns and gain `teacher_logits`.

    Args:
        split: Which rows.
        batch_size: Rows of a forward pass.
        labels: What becomes of the hard labels: "keep" them, "fill" missing ones with the teacher's answer, or
            "replace" all by it.
    """

    name = "soft_labels"
    required_columns = (("text",),)

    def __init__(self, split: str = "train", batch_size: int = 64, labels: str = "keep") -> None:
        if labels not in LABELS:
            raise UserError(f"must be one of {', '.join(LABELS)}, got '{labels}'", where="generate.labels")
        if batch_size < 1:
            raise UserError(f"must be at least 1, got {batch_size}", where="generate.batch_size")
        self.split = split
        self.batch_size = batch_size
        self.labels = labels

    def check(self, task: Task) -> None:
        """Refuse a task without classes."""
        if not task.has_classes:
            raise UserError(f"{task.name} has no soft labels to write", where="generate", fix="use generate=text")

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
        data = encode(rows, self.split, teacher.task, teacher.tokenizer, teacher.labels)
        mine = np.arange(len(table))[share]
        for start in range(0, len(mine), self.batch_size):
            indices = mine[start : start + self.batch_size]
            logits = teacher(data.batch(indices).to(teacher.device)).logits
            assert logits is not None
            values = logits.rows(0, len(logits)).float().cpu()
            answers = [teacher.labels[index] for index in values.argmax(dim=-1).tolist()]
            yield [
                row | {"label": self._label(row.get("label"), answer), "teacher_logits": scores}
                for row, answer, scores in zip(table.select(indices), answers, values.tolist(), strict=True)
            ]

    def _label(self, own: Any, answer: str) -> str | None:
        if self.labels == "replace" or (self.labels == "fill" and own is None):
            return answer
        return None if own is None else str(own)
