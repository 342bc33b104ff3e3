"""The objective: named, weighted terms that share one pass over the outputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from distillkit.errors import UserError
from distillkit.losses.base import LogitLoss
from distillkit.losses.vocabulary import WeightedTerm, vocabulary_pass
from distillkit.signals import Batch, HeadLogits, Signal


class Objective(nn.Module):
    """Σ weight · mean of each term; the mean is over all items of the optimiser step that the term counts.

    Args:
        terms: name → {weight: number, loss: a loss node}. A weight of 0 switches a term off.
        alpha: Only to be referred to by the terms' weights in YAML (`${loss.alpha}`).
        temperature: Likewise.
    """

    def __init__(
        self, terms: dict[str, dict[str, Any]], alpha: float | None = None, temperature: float | None = None
    ) -> None:
        super().__init__()
        if alpha is not None and not 0 <= alpha <= 1:
            raise UserError(f"must be in [0, 1], got {alpha}", where="loss.alpha")
        if temperature is not None and not temperature > 0:
            raise UserError(f"must be above 0, got {temperature}", where="loss.temperature")
        for name, term in terms.items():
            _check_term(name, term)
        active = {name: term for name, term in terms.items() if term["weight"] > 0}
        if not active:
            raise UserError("no term has a weight above 0", where="loss.terms")
        self.names = list(active)
        self.weights = [float(term["weight"]) for term in active.values()]
        self.losses = nn.ModuleList(term["loss"] for term in active.values())

    @property
    def needs_teacher(self) -> bool:
        """Whether any term compares with a teacher."""
        return any(loss.needs_teacher for loss in self._logit_losses())

    @property
    def needs_labels(self) -> bool:
        """Whether any term compares with hard labels."""
        return any(loss.needs_labels for loss in self._logit_losses())

    def describe(self) -> dict[str, str]:
        """Return a short text for each term, for reports."""
        return {
            name: f"{weight:g} × {type(loss).__name__}"
            for name, weight, loss in zip(self.names, self.weights, self.losses, strict=True)
        }

    def counts(self, batch: Batch) -> Tensor:
        """Return how many items of a batch each term counts: float64 `[terms]`."""
        return torch.stack([loss.mask(batch).sum() for loss in self._logit_losses()]).double()

    def forward(self, student: Signal, teacher: Signal | None, batch: Batch, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Compute this micro-batch's share of the step's loss.

        Args:
            student: Signal of the student.
            teacher: Signal of the teacher, or None.
            batch: The micro-batch.
            counts: Items of each term in the whole optimiser step, over all micro-batches and processes `[terms]`.

        Returns:
            Σ weight · sum / count, a scalar that adds up over micro-batches and processes to the step's loss; and
            the unweighted sum of each term `[terms]`, detached.
        """
        assert student.logits is not None
        scales = torch.tensor(self.weights, device=counts.device, dtype=torch.float64) / counts.clamp(min=1)
        terms = [
            WeightedTerm(loss, loss.mask(batch), scale)
            for loss, scale in zip(self._logit_losses(), scales.float().unbind(), strict=True)
        ]
        taught = None if teacher is None else teacher.logits
        if isinstance(student.logits, HeadLogits):
            return vocabulary_pass(student.logits, taught, batch.labels, terms)
        logits = student.logits.values.float()
        target = None if taught is None else taught.rows(0, len(taught)).float()
        sums = torch.stack([(term.loss.per_item(logits, target, batch.labels) * term.mask).sum() for term in terms])
        return (sums * torch.stack([term.scale for term in terms])).sum(), sums.detach()

    def total(self, sums: Tensor, counts: Tensor) -> float:
        """Return Σ weight · sum / count from added-up sums and counts `[terms]`."""
        weights = torch.tensor(self.weights, dtype=torch.float64, device=sums.device)
        return (weights * sums.double() / counts.clamp(min=1)).sum().item()

    def _logit_losses(self) -> list[LogitLoss]:
        return [loss for loss in self.losses if isinstance(loss, LogitLoss)]


def _check_term(name: str, term: Any) -> None:
    where = f"loss.terms.{name}"
    if not isinstance(term, dict) or set(term) != {"weight", "loss"}:
        raise UserError("a term is {weight: number, loss: {_target_: …}}", where=where)
    if not isinstance(term["loss"], LogitLoss):
        raise UserError(f"{type(term['loss']).__name__} is not a loss", where=f"{where}.loss._target_")
    if isinstance(term["weight"], bool) or not isinstance(term["weight"], int | float) or term["weight"] < 0:
        raise UserError(f"must be a number ≥ 0, got {term['weight']!r}", where=f"{where}.weight")
