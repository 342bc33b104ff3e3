"""What the rest of the program asks of a task, and the padding that tasks share."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from distillkit.signals import Batch, Signal

Row = dict[str, Any]


class Task(Protocol):
    """One kind of problem: which model, how rows become batches, what counts."""

    name: str
    required_columns: tuple[tuple[str, ...], ...]  # alternatives: the rows must have all columns of one of them
    best_metric: str
    metric_names: tuple[str, ...]
    has_classes: bool
    max_length: int  # tokens of a row

    def auto_class(self) -> Any:
        """Return the transformers AutoModel class."""
        ...

    def encode(self, rows: dict[str, list[Any]], tokenizer: Any, label_ids: dict[str, int] | None) -> dict[str, list]:
        """Turn rows (column → values) into encoded rows (column → values); one row may give several or none."""
        ...

    def collate(self, rows: list[Row], tokenizer: Any) -> Batch:
        """Pad encoded rows into one batch."""
        ...

    def signal(self, model: Any, batch: Batch) -> Signal:
        """Run a transformers model over a batch."""
        ...

    def score(self, signal: Signal, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
        """Return sums that add up over batches and processes, and the predictions int64 `[items]`."""
        ...

    def metrics(self, sums: dict[str, Tensor]) -> dict[str, float]:
        """Turn added-up sums into metrics."""
        ...


LOWER_IS_BETTER = frozenset({"loss", "perplexity"})


def higher_is_better(metric: str) -> bool:
    """Tell in which direction a metric improves."""
    return metric not in LOWER_IS_BETTER


def pad(rows: list[list[int]], value: int) -> Tensor:
    """Pad lists of integers on the right to the longest: int64 `[batch, length]`."""
    length = max(len(row) for row in rows)
    return torch.tensor([row + [value] * (length - len(row)) for row in rows], dtype=torch.int64)


def attention_mask(rows: list[list[int]]) -> Tensor:
    """Mark the positions that hold tokens: int64 `[batch, length]`."""
    return pad([[1] * len(row) for row in rows], 0)
