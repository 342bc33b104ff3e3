"""What every loss term is."""

from __future__ import annotations

from torch import Tensor, nn

from distillkit.errors import UserError
from distillkit.signals import Batch


class LogitLoss(nn.Module):
    """A term that looks at logits item by item, so that it can run chunk by chunk over the items."""

    needs_teacher = True
    needs_labels = False

    def mask(self, batch: Batch) -> Tensor:
        """Return the items that this term averages over: bool `[items]`."""
        raise NotImplementedError

    def per_item(self, student: Tensor, teacher: Tensor | None, labels: Tensor) -> Tensor:
        """Return the loss of each item.

        Args:
            student: float32 logits `[items, classes]`.
            teacher: float32 logits `[items, classes]`, or None if `needs_teacher` is False.
            labels: int64 `[items]`; `IGNORE` where there is none.

        Returns:
            nats `[items]`.
        """
        raise NotImplementedError


def positive(value: float, key: str) -> float:
    """Refuse a hyper-parameter that is not above zero."""
    if not value > 0:
        raise UserError(f"must be above 0, got {value}", where=key)
    return value
