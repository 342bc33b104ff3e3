"""What losses between two models share: the common classes, masks, and exact relative entropies."""

from __future__ import annotations

import torch
from torch import Tensor

from distillkit.errors import UserError
from distillkit.losses.base import LogitLoss
from distillkit.signals import ABSENT, Batch

EXPONENT = 80.0  # exp of it is finite in float32, and a probability ratio beyond it weighs less than rounding


class TaughtLoss(LogitLoss):
    """A term that compares the student with the teacher, over the items that the teacher speaks about.

    How it is compared with a teacher that lists only some classes (`distillkit.losses.sparse`): at `temperature`; with
    all classes that are not listed as one more class if `lumps`, else among the listed ones alone; by logits as they
    are if `absolute`, else by logits less a constant of each item. Is the loss, but for a constant, `linear` in the
    teacher's probabilities, then random draws from what is not listed give its gradient without bias.
    """

    temperature = 1.0
    lumps = True
    absolute = False
    linear = False

    def mask(self, batch: Batch) -> Tensor:
        """Return the items that the teacher speaks about."""
        return batch.taught


def shared_logits(student: Tensor, teacher: Tensor | None) -> tuple[Tensor, Tensor]:
    """Cut both to the classes that both have (a padded vocabulary may be wider); the teacher gets no gradient."""
    assert teacher is not None
    shared = min(student.shape[-1], teacher.shape[-1])
    return student[..., :shared], teacher[..., :shared].detach()


def present(logits: Tensor) -> Tensor:
    """Tell which classes an item has at all: bool `[items, classes]`; also from logits over a temperature, or log q."""
    return logits > 1e-10 * ABSENT


def soften(logits: Tensor, temperature: float) -> Tensor:
    """Divide by the temperature."""
    return logits if temperature == 1 else logits / temperature


def floored(log_p: Tensor) -> Tensor:
    """Make −inf, the logarithm of zero, finite; its exponential stays zero and 0 · log 0 becomes 0."""
    return log_p.clamp(min=torch.finfo(log_p.dtype).min)


def kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    """Return KL(a ‖ b) = Σ a (log a − log b) `[items]`; infinite where b is zero and a is not.

    Args:
        log_a: Finite log-probabilities `[items, classes]`.
        log_b: Log-probabilities `[items, classes]`.
    """
    return (log_a.exp() * (log_a - log_b)).sum(dim=-1)


def kl_to_mixture(log_a: Tensor, log_b: Tensor, weight: float) -> Tensor:
    """Return KL(a ‖ (1 − w) a + w b) / w `[items]`, with no loss of digits for any w in (0, 1].

    Args:
        log_a: Log-probabilities `[items, classes]`; finite if w is 1.
        log_b: Likewise; a class may be −inf in one of them, not in both.
        weight: w, the share of b in the mixture.
    """
    return -(log_a.exp() * log_mixture(log_b - log_a, weight)).sum(dim=-1) / weight


def log_mixture(log_ratio: Tensor, weight: float) -> Tensor:
    """Return log(((1 − w) a + w b) / a), exact relative to w in (0, 1].

    With r = b / a it is log(1 + w (r − 1)). For small w the logarithm must be exact relative to w, which log1p is;
    for w near 1 its argument would cancel where r is small, and r − (1 − w)(r − 1) does not.

    Args:
        log_ratio: log r.
        weight: w, the share of b in the mixture.
    """
    if weight == 1:
        return log_ratio
    log_r = log_ratio.clamp(-EXPONENT, EXPONENT)
    change = log_r.expm1()
    return (weight * change).log1p() if weight <= 0.5 else (log_r.exp() - (1 - weight) * change).log()


def fraction(value: float, key: str, *, including_one: bool = True) -> float:
    """Refuse a hyper-parameter outside [0, 1], or [0, 1)."""
    if not (0 <= value < 1 or (including_one and value == 1)):
        raise UserError(f"must be in [0, 1{']' if including_one else ')'}, got {value}", where=key)
    return value
