"""Decoupled distillation: the labelled class against the rest, and the rest among themselves."""

from __future__ import annotations

import torch
from torch import Tensor

from distillkit.errors import UserError
from distillkit.losses.schedule import Schedule
from distillkit.losses.shared import TaughtLoss, floored, kl, shared_logits, soften
from distillkit.signals import IGNORE, Batch


class DecoupledKD(TaughtLoss):
    """T² · [α · TCKD + β · NCKD]   (Zhao et al. 2022, "Decoupled Knowledge Distillation").

    TCKD is KL((p_t, 1 − p_t) ‖ (q_t, 1 − q_t)), t the label; NCKD is KL(p̂ ‖ q̂), p̂ and q̂ the distributions over the
    other classes, renormalised. Forward KL is TCKD + (1 − p_t) · NCKD: the factor that hides what a confident
    teacher knows is set free. Both parts are quadratic near q = p, so T² keeps the gradient's size.

    It counts labelled items that the teacher speaks about. With two classes NCKD is zero. A label outside the
    classes that both models have leaves TCKD zero and NCKD over all of them.

    Args:
        alpha: α ≥ 0.
        beta: β ≥ 0; the paper takes 0.5 … 8, more for a more confident teacher.
        temperature: T.
    """

    needs_labels = True

    def __init__(self, alpha: float = 1.0, beta: float = 8.0, temperature: float | Schedule = 4.0) -> None:
        super().__init__()
        for key, value in (("alpha", alpha), ("beta", beta)):
            if not value >= 0:
                raise UserError(f"must be at least 0, got {value}", where=key)
        self.alpha, self.beta = alpha, beta
        self.temperature = self.temperature_from(temperature)

    def mask(self, batch: Batch) -> Tensor:
        """Return the items with a label and a teacher's word."""
        return batch.taught & (batch.labels != IGNORE)

    def per_item(self, student: Tensor, teacher: Tensor | None, labels: Tensor) -> Tensor:
        """Return nats `[items]`, over the classes that both have."""
        (binary_q, others_q), (binary_p, others_p) = (
            _split(soften(logits, self.temperature), labels) for logits in shared_logits(student, teacher)
        )
        target, rest = kl(floored(binary_p), binary_q), kl(floored(others_p), others_q)
        return self.temperature**2 * (self.alpha * target + self.beta * rest)


def _split(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return log-probabilities of label and rest `[items, 2]`, and of the other classes `[items, classes]`.

    The labelled class has probability zero among the other classes, by a finite logarithm.
    """
    nothing = torch.finfo(logits.dtype).min / 2
    classes = logits.shape[-1]
    known = ((labels >= 0) & (labels < classes)).unsqueeze(-1)
    index = labels.clamp(0, classes - 1).unsqueeze(-1)
    chosen = logits.gather(-1, index)
    others = logits.scatter(-1, index, chosen.masked_fill(known, nothing))
    mass = others.logsumexp(dim=-1, keepdim=True)
    binary = torch.cat([chosen.masked_fill(~known, nothing), mass], dim=-1).log_softmax(dim=-1)
    return binary, others - mass
