"""Steps whose loss or gradient is not finite: they change nothing, and too many in a row end the run."""

from __future__ import annotations

import numpy as np

from distillkit.errors import UserError


class NonFinite:
    """Count the steps that were skipped.

    Args:
        most: So many in a row end the run.

    Attributes:
        total: Steps skipped so far.
    """

    def __init__(self, most: int) -> None:
        self.total = 0
        self._most = most
        self._row = 0

    def passed(self) -> None:
        """Take note of a finite step."""
        self._row = 0

    def skipped(self, step: int, rows: np.ndarray, scale: float | None) -> None:
        """Take note of a step that was not.

        Args:
            step: Optimiser steps done, this one included.
            rows: Indices in the training split of its rows.
            scale: What the loss was multiplied by in fp16. Above 1 it is only too large, and has been lowered.

        Raises:
            UserError: If it is one too many.
        """
        self.total += 1
        self._row += scale is None or scale <= 1
        if self._row >= self._most:
            some = ", ".join(str(row + 1) for row in sorted({int(row) for row in rows})[:5])
            raise UserError(
                f"loss or gradient is not finite for {self._row} steps in a row; the last is step {step}, of rows "
                f"{some}, … (all are in metrics.jsonl)",
                where="train",
                fix="lower train.learning_rate, or look at these rows; the last checkpoint is kept",
            )
