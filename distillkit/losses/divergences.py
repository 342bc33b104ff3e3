"""Divergences between the softened outputs of teacher and student."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from distillkit.losses.base import LogitLoss, positive
from distillkit.signals import Batch


class ForwardKL(LogitLoss):
    """T² · KL(p_T ‖ q_T), p and q the softmax of teacher and student logits divided by T.

    The factor T² keeps the gradient's size as T grows, since it falls as 1/T² (Hinton, Vinyals, Dean 2015,
    section 2). The teacher's entropy is included: identical models give zero.

    Args:
        temperature: T.
    """

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        self.temperature = positive(temperature, "temperature")

    def mask(self, batch: Batch) -> Tensor:
        """Return the items that the teacher speaks about."""
        return batch.taught

    def per_item(self, student: Tensor, teacher: Tensor | None, labels: Tensor) -> Tensor:  # noqa: ARG002
        """Return nats `[items]`, over the classes that both have (a padded vocabulary may be wider)."""
        assert teacher is not None
        shared = min(student.shape[-1], teacher.shape[-1])
        log_q = functional.log_softmax(student[..., :shared] / self.temperature, dim=-1)
        log_p = functional.log_softmax(teacher[..., :shared] / self.temperature, dim=-1)
        return self.temperature**2 * functional.kl_div(log_q, log_p, reduction="none", log_target=True).sum(dim=-1)
