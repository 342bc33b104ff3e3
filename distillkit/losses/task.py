"""Hard labels."""

from __future__ import annotations

from torch import Tensor
from torch.linalg import vecdot
from torch.nn import functional

from distillkit.errors import UserError
from distillkit.losses.base import LogitLoss
from distillkit.losses.derivatives import Block
from distillkit.losses.shared import present
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
        loss = functional.cross_entropy(student, labels, reduction="none", ignore_index=IGNORE)
        if self.label_smoothing == 0:
            return loss
        here, log_q = present(student), student.log_softmax(dim=-1)
        even = -(log_q * here).sum(dim=-1) / here.sum(dim=-1)
        smooth = (1 - self.label_smoothing) * loss + self.label_smoothing * even
        return smooth.masked_fill(labels == IGNORE, 0.0)

    def derive(self, block: Block, scale: float) -> Tensor:
        """Add scale times the derivative of `per_item` to the block; return nats `[items]`."""
        student = block.softened(block.student.shape[-1], 1.0)
        labels = block.labels.unsqueeze(-1)
        known, classes = (labels != IGNORE).to(student.shifted.dtype), labels.clamp(min=0)
        value = student.log_total - student.shifted.gather(-1, classes)
        student.add_at(classes, known, scale * (1 - self.label_smoothing))
        if self.label_smoothing > 0:
            here = present(block.student)
            even = here * (known / here.sum(dim=-1, keepdim=True))
            smooth = student.log_total - vecdot(even, student.shifted).unsqueeze(-1)
            value = value.lerp_(smooth, self.label_smoothing)
            student.add(even, scale * self.label_smoothing)
        return (value * known).squeeze(-1)


class Regression(LogitLoss):
    """Squared error against a score, (z − y)², mean over the outputs of an item, over the items that have one.

    Labels are float `[items]` or `[items, outputs]`, NaN where there is none.
    """

    needs_teacher = False
    needs_labels = True
    fits = frozenset({"scores"})

    def mask(self, batch: Batch) -> Tensor:
        """Return the labelled items."""
        return _scored(batch.labels)

    def per_item(self, student: Tensor, teacher: Tensor | None, labels: Tensor) -> Tensor:  # noqa: ARG002
        """Return squared scores `[items]`; zero where there is no label."""
        target = labels.reshape(student.shape).to(student.dtype).nan_to_num()
        return (student - target).square().mean(dim=-1) * _scored(labels)


class BinaryCrossEntropy(LogitLoss):
    """−y log σ(z) − (1 − y) log σ(−z), mean over the classes: an item may have several labels, or none of them.

    Labels are float `[items, classes]`, 1 for each class that an item has and 0 for the others, NaN where nothing is
    known.
    """

    needs_teacher = False
    needs_labels = True
    fits = frozenset({"labels"})

    def mask(self, batch: Batch) -> Tensor:
        """Return the labelled items."""
        return _scored(batch.labels)

    def per_item(self, student: Tensor, teacher: Tensor | None, labels: Tensor) -> Tensor:  # noqa: ARG002
        """Return nats `[items]`; zero where there is no label."""
        target = labels.to(student.dtype).nan_to_num()
        loss = functional.binary_cross_entropy_with_logits(student, target, reduction="none")
        return loss.mean(dim=-1) * _scored(labels)


def _scored(labels: Tensor) -> Tensor:
    """Tell which items have all their float labels: bool `[items]`."""
    return ~labels.reshape(len(labels), labels.shape[1:].numel()).isnan().any(dim=1)
