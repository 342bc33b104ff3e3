"""Agreement of logits that is no divergence: squared error, correlation, and the order of the top classes."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from distillkit.errors import UserError
from distillkit.losses.base import positive
from distillkit.losses.divergences import Divergence
from distillkit.losses.schedule import Schedule
from distillkit.losses.shared import TaughtLoss, shared_logits

MAX_RANKED = 64  # bounds the [items, pairs] tensors


class LogitMSE(TaughtLoss):
    """(1/V) Σ (z_student − z_teacher)² over the V classes that both have   (Ba, Caruana 2014).

    There is no temperature: z/T and a factor T² would cancel. The teacher's logits must be finite.

    Args:
        centred: Subtract each item's mean logit first, so that shifting all of an item's logits, which changes no
            probability, costs nothing. Half of the centred error is what T² · KL tends to as T → ∞.
    """

    def __init__(self, centred: bool = False) -> None:
        super().__init__()
        self.centred = centred

    def per_item(self, student: Tensor, teacher: Tensor | None, labels: Tensor) -> Tensor:  # noqa: ARG002
        """Return squared logits `[items]`."""
        student, teacher = shared_logits(student, teacher)
        error = student - teacher
        if self.centred:
            error = error - error.mean(dim=-1, keepdim=True)
        return error.square().mean(dim=-1)


class Correlation(Divergence):
    """1 − ρ(p, q), ρ Pearson's correlation over the classes of an item   (Huang et al. 2022, DIST).

    It is the inter-class term. DIST's intra-class term correlates the items of a batch for each class: it
    cannot be computed chunk by chunk and is not here. Computed as ½ ‖p̄/‖p̄‖ − q̄/‖q̄‖‖², p̄ and q̄ less their means,
    which is exact near zero.

    There is no factor T²: ρ does not change with scale, so the gradient's size does not fall with T (the
    authors' code multiplies by T² nevertheless). For two classes ρ is ±1 and teaches nothing. Where p is uniform to
    within 1e-6 there is no correlation to match: the value is ½ and the gradient zero.

    Args:
        temperature: T.
    """

    power = 0

    def between(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Return 1 − ρ(p, q)."""
        return (_standardise(log_p.exp()) - _standardise(log_q.exp())).square().sum(dim=-1) / 2


def _standardise(probabilities: Tensor) -> Tensor:
    """Subtract the mean and divide by the norm; deviations below 1e-6 of uniform stay small."""
    floor = 1e-6 / math.sqrt(probabilities.shape[-1])
    return functional.normalize(probabilities - probabilities.mean(dim=-1, keepdim=True), dim=-1, eps=floor)


class RankingLogistic(TaughtLoss):
    """T · mean of log(1 + exp(−(z_i − z_j)/T)) over pairs of the teacher's top k with teacher's logit i > j (RankNet).

    z are the student's logits: only the order of the teacher's counts, and ties say nothing (Burges et al. 2005).
    It falls as the student's gaps grow and is not zero for identical models. The gradient falls as 1/T, so the
    factor is T and not T².

    Args:
        k: How many of the teacher's classes to rank: 2 … 64.
        temperature: T.
    """

    def __init__(self, k: int = 10, temperature: float | Schedule = 1.0) -> None:
        super().__init__()
        self.k = _ranked(k)
        self.temperature = self.temperature_from(temperature)

    def per_item(self, student: Tensor, teacher: Tensor | None, labels: Tensor) -> Tensor:  # noqa: ARG002
        """Return nats `[items]`."""
        gaps, ordered = _top_pairs(*shared_logits(student, teacher), self.k)
        return self.temperature * _mean(functional.softplus(-gaps / self.temperature), ordered)


class RankingHinge(TaughtLoss):
    """Mean of max(0, margin − (z_i − z_j)) over pairs of the teacher's top k with teacher's logit i > j.

    z are the student's logits (Herbrich, Graepel, Obermayer 2000). Ties of the teacher say nothing. Zero where the
    student puts every pair in the teacher's order, `margin` apart. A temperature would be another margin.

    Args:
        k: How many of the teacher's classes to rank: 2 … 64.
        margin: In logits.
    """

    def __init__(self, k: int = 10, margin: float = 1.0) -> None:
        super().__init__()
        self.k = _ranked(k)
        self.margin = positive(margin, "margin")

    def per_item(self, student: Tensor, teacher: Tensor | None, labels: Tensor) -> Tensor:  # noqa: ARG002
        """Return logits `[items]`."""
        gaps, ordered = _top_pairs(*shared_logits(student, teacher), self.k)
        return _mean((self.margin - gaps).relu(), ordered)


def _ranked(k: int) -> int:
    if not 2 <= k <= MAX_RANKED:
        raise UserError(f"must be 2 … {MAX_RANKED}, got {k}", where="k")
    return k


def _top_pairs(student: Tensor, teacher: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the student's gap of each pair of the teacher's top k `[items, pairs]`, and where the teacher has one."""
    best, classes = teacher.topk(min(k, teacher.shape[-1]), dim=-1)
    chosen = student.gather(-1, classes)
    above, below = torch.triu_indices(best.shape[-1], best.shape[-1], offset=1, device=best.device)
    return chosen[..., above] - chosen[..., below], best[..., above] > best[..., below]


def _mean(values: Tensor, counted: Tensor) -> Tensor:
    """Average over the counted pairs of each item; zero where there are none."""
    return values.masked_fill(~counted, 0.0).sum(dim=-1) / counted.sum(dim=-1).clamp(min=1)
