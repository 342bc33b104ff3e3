"""Hard labels."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from distillkit.errors import UserError
from distillkit.losses.base import LogitLoss
from distillkit.signals import IGNORE, Batch


class CrossEntropy(LogitLoss):
    """Cross-entropy with the hard label, −log p(label), over the items that have one.

    Args:
        label_smoothing: Share of the target spread evenly over all classes (Szegedy et al. 2016).
    """

    needs_teacher = False
    needs_labels = True

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise UserError(f"must be in [0, 1), got {label_smoothing}", where="label_smoothing")
        self.label_smoothing = label_smoothing

    def mask(self, batch: Batch) -> Tensor:
        """Return the labelled items."""
        return batch.labels != IGNORE

    def per_item(self, student: Tensor, teacher: Tensor | None, labels: Tensor) -> Tensor:  # noqa: ARG002
        """Return nats `[items]`; zero where there is no label."""
        return functional.cross_entropy(
            student, labels, reduction="none", label_smoothing=self.label_smoothing, ignore_index=IGNORE
        )
