"""Agreement of logits that is no divergence: squared error, correlation, and the order of the top classes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from distillkit.errors import UserError
from distillkit.losses.base import positive
from distillkit.losses.derivatives import Block
from distillkit.losses.divergences import Divergence
from distillkit.losses.schedule import Schedule
from distillkit.losses.shared import TaughtLoss, present, shared_logits

MAX_RANKED = 64  # bounds the [items, pairs] tensors


class LogitMSE(TaughtLoss):
    """(1/V) Σ (z_student − z_teacher)² over the V classes that both have   (Ba, Caruana 2014).

    There is no temperature: z/T and a factor T² would cancel. The teacher's logits must be finite. With a teacher that
    lists only some classes, V are those; it must have kept its normaliser if the logits are not centred.

    Args:
        centred: Subtract each item's mean logit first, so that shifting all of an item's logits, which changes no
            probability, costs nothing. Half of the centred error is what T² · KL tends to as T → ∞.
    """

    lumps = False

    def __init__(self, centred: bool = False) -> None:
        super().__init__()
        self.centred = centred
        self.absolute = not centred
        self.fits = frozenset({"classes"} if centred else {"classes", "labels", "scores"})

    def per_item(self, student: Tensor, teacher: Tensor | None, labels: Tensor) -> Tensor:  # noqa: ARG002
        """Return squared logits `[items]`."""
        student, teacher = shared_logits(student, teacher)
        here = present(student)
        error, classes = student - teacher, here.sum(dim=-1).clamp(min=1)
        if self.centred:
            error = (error - (error.sum(dim=-1) / classes).unsqueeze(-1)) * here
        return error.square().sum(dim=-1) / classes

    def derive(self, block: Block, scale: float) -> Tensor:
        """Add scale times the derivative of `per_item` to the block; return squared logits `[items]`."""
        student, teacher = shared_logits(block.student, block.teacher)
        here = present(student)
        error, classes = student - teacher, here.sum(dim=-1, keepdim=True, dtype=student.dtype).clamp(min=1)
        if self.centred:
            error.sub_(error.sum(dim=-1, keepdim=True) / classes).mul_(here)
        value = error.square().sum(dim=-1) / classes.squeeze(-1)
        block.add(error.mul_(2 * scale / classes))
        return value


class Correlation(Divergence):
    """1 − ρ(p, q), ρ Pearson's correlation over the classes of an item   (Huang et al. 2022, DIST).

    It is the inter-class term. DIST's intra-class term correlates the items of a batch for each class: it
    cannot be computed chunk by chunk and is not here. Computed as ½ ‖p̄/‖p̄‖ − q̄/‖q̄‖‖², p̄ and q̄ less their means,
    which is exact near zero.

    There is no factor T²: ρ does not change with scale, so the gradient's size does not fall with T (the
    authors' code multiplies by T² nevertheless). For two classes ρ is ±1 and teaches nothing. Where p is uniform to
    within 1e-6 there is no correlation to match: the value is ½ and the gradient zero. With a teacher that lists only
    some classes, all others are one class.

    Args:
        temperature: T.
    """

    power = 0

    def between(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Return 1 − ρ(p, q)."""
        here = present(log_q)
        return (_standardise(log_p.exp(), here) - _standardise(log_q.exp(), here)).square().sum(dim=-1) / 2


def _standardise(probabilities: Tensor, here: Tensor) -> Tensor:
    """Subtract the mean and divide by the norm, over the classes that are here; deviations below 1e-6 stay small."""
    classes = here.sum(dim=-1, keepdim=True)
    centred = (probabilities - probabilities.sum(dim=-1, keepdim=True) / classes) * here
    norm = torch.linalg.vector_norm(centred, dim=-1, keepdim=True)
    return centred / torch.maximum(norm, 1e-6 / classes.sqrt())


class RankingLogistic(TaughtLoss):
    """T · mean of log(1 + exp(−(z_i − z_j)/T)) over pairs of the teacher's top k with teacher's logit i > j (RankNet).

    z are the student's logits: only the order of the teacher's counts, and ties say nothing (Burges et al. 2005).
    It falls as the student's gaps grow and is not zero for identical models. The gradient falls as 1/T, so the
    factor is T and not T². Of a teacher that lists only some classes those are ranked.

    Args:
        k: How many of the teacher's classes to rank: 2 … 64.
        temperature: T.
    """

    lumps = False
    fits = frozenset({"classes", "labels"})

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
    student puts every pair in the teacher's order, `margin` apart. A temperature would be another margin. Of a teacher
    that lists only some classes those are ranked.

    Args:
        k: How many of the teacher's classes to rank: 2 … 64.
        margin: In logits.
    """

    lumps = False
    fits = frozenset({"classes", "labels"})

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
    here = present(chosen)
    ordered = (best[..., above] > best[..., below]) & here[..., above] & here[..., below]
    return chosen[..., above] - chosen[..., below], ordered


def _mean(values: Tensor, counted: Tensor) -> Tensor:
    """Average over the counted pairs of each item; zero where there are none."""
    return values.masked_fill(~counted, 0.0).sum(dim=-1) / counted.sum(dim=-1).clamp(min=1)
