"""The objective: named, weighted terms that share one pass over the outputs."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from distillkit.errors import UserError, located
from distillkit.features import ModelShape
from distillkit.losses.base import FeatureLoss, LogitLoss, Loss
from distillkit.losses.schedule import Schedule
from distillkit.losses.vocabulary import WeightedTerm, logit_terms
from distillkit.signals import Batch, Signal, Wanted

MEMORY = 100  # optimiser steps over which the balance remembers a term's size


class Objective(nn.Module):
    """Σ weight · mean of each term; the mean is over all items of the optimiser step that the term counts.

    Args:
        terms: name → {weight: number or schedule, loss: a loss node}. A weight of 0 switches a term off.
        alpha: Only to be referred to by the terms' weights in YAML (`${loss.alpha}`).
        temperature: Likewise.
        balance: "size" divides each term by a running mean of its own value over the last steps, so that terms of
            different units start from equal footing and the weights say how much each matters; the gradient is then
            that of Σ weight · log(mean). None takes the terms as they are.
    """

    def __init__(
        self,
        terms: dict[str, dict[str, Any]],
        alpha: float | None = None,
        temperature: float | Schedule | None = None,
        balance: Literal["size"] | None = None,
    ) -> None:
        super().__init__()
        if alpha is not None and not 0 <= alpha <= 1:
            raise UserError(f"must be in [0, 1], got {alpha}", where="loss.alpha")
        if temperature is not None and not isinstance(temperature, Schedule) and not temperature > 0:
            raise UserError(f"must be above 0, got {temperature}", where="loss.temperature")
        for name, term in terms.items():
            _check_term(name, term)
        active = {name: term for name, term in terms.items() if max(_values(term["weight"])) > 0}
        if not active:
            raise UserError("no term has a weight above 0", where="loss.terms")
        self.names = list(active)
        self.balance = balance
        self.losses = nn.ModuleList(term["loss"] for term in active.values())
        self.progress = 0.0
        self._weights: list[float | Schedule] = [term["weight"] for term in active.values()]
        self.sizes: Tensor
        self.sized: Tensor
        if balance is not None:
            self.register_buffer("sizes", torch.zeros(len(active), dtype=torch.float64))  # running means of the terms
            self.register_buffer("sized", torch.zeros(len(active), dtype=torch.int64))  # steps in them

    @property
    def needs_teacher(self) -> bool:
        """Whether any term compares with a teacher."""
        return any(loss.needs_teacher for loss in self._terms())

    @property
    def needs_labels(self) -> bool:
        """Whether any term compares with hard labels."""
        return any(loss.needs_labels for loss in self._terms())

    @property
    def feature_terms(self) -> dict[str, FeatureLoss]:
        """The terms that look inside the models."""
        return {
            name: loss for name, loss in zip(self.names, self._terms(), strict=True) if isinstance(loss, FeatureLoss)
        }

    @property
    def wanted_of_student(self) -> Wanted:
        """What the student has to show, once bound."""
        logits = any(isinstance(loss, LogitLoss) for loss in self._terms())
        return Wanted(logits, frozenset().union(*(loss.student_features for loss in self.feature_terms.values())))

    @property
    def wanted_of_teacher(self) -> Wanted:
        """What the teacher has to show, once bound."""
        logits = any(isinstance(loss, LogitLoss) and loss.needs_teacher for loss in self._terms())
        return Wanted(logits, frozenset().union(*(loss.teacher_features for loss in self.feature_terms.values())))

    @property
    def weights(self) -> list[float]:
        """The weights at this moment of the run."""
        return [weight.at(self.progress) if isinstance(weight, Schedule) else weight for weight in self._weights]

    def describe(self) -> dict[str, str]:
        """Return a short text for each term, for reports."""
        return {
            name: f"{weight if isinstance(weight, Schedule) else format(weight, 'g')} × {type(loss).__name__}"
            for name, weight, loss in zip(self.names, self._weights, self.losses, strict=True)
        }

    def bind(self, student: ModelShape, teacher: ModelShape) -> None:
        """Choose the features to compare between models of these shapes, and make the projectors.

        Raises:
            UserError: If a term cannot compare them.
        """
        for name, loss in self.feature_terms.items():
            with located(f"loss.terms.{name}.loss", "."):
                loss.bind(student, teacher)

    def advance(self, progress: float) -> None:
        """Set weights and temperatures that follow a schedule to their value after a share of the run's steps."""
        self.progress = progress
        for loss in self._terms():
            loss.advance(progress)

    def counts(self, batch: Batch) -> Tensor:
        """Return how many items of a batch each term counts: float64 `[terms]`."""
        return torch.stack([loss.mask(batch).sum() for loss in self._terms()]).double()

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
        scales = (self._factors(counts.device) / counts.clamp(min=1)).float().unbind()
        sums: dict[int, Tensor] = {}
        share = torch.zeros((), device=counts.device)
        pointwise = {index: loss for index, loss in enumerate(self._terms()) if isinstance(loss, LogitLoss)}
        if pointwise:
            terms = [WeightedTerm(loss, loss.mask(batch), scales[index]) for index, loss in pointwise.items()]
            assert student.logits is not None
            said = None if teacher is None else teacher.logits
            share, parts = logit_terms(student.logits, said, batch.labels, terms)
            sums |= dict(zip(pointwise, parts.unbind(), strict=True))
        for index, loss in enumerate(self._terms()):
            if isinstance(loss, FeatureLoss):
                assert teacher is not None
                total = loss(student, teacher, batch)
                share = share + scales[index] * total
                sums[index] = total.detach()
        return share, torch.stack([sums[index].float() for index in range(len(self.losses))])

    def total(self, sums: Tensor, counts: Tensor) -> float:
        """Return Σ weight · sum / count from added-up sums and counts `[terms]`."""
        return (self._factors(sums.device) * sums.double() / counts.clamp(min=1)).sum().item()

    def remember(self, sums: Tensor, counts: Tensor) -> None:
        """Let the balance learn from the sums and counts of a whole optimiser step, over all processes `[terms]`."""
        counted = counts > 0
        self.sized += counted
        pace = counted / self.sized.clamp(min=1, max=MEMORY)
        self.sizes += pace * (sums.double() / counts.clamp(min=1) - self.sizes)

    def _factors(self, device: torch.device) -> Tensor:
        """Return what multiplies the mean of each term: float64 `[terms]`."""
        weights = torch.tensor(self.weights, dtype=torch.float64, device=device)
        if self.balance is None:
            return weights
        return weights / torch.where(self.sizes > 0, self.sizes, 1.0)

    def _terms(self) -> list[Loss]:
        return list(self.losses)  # type: ignore[arg-type]


def _check_term(name: str, term: Any) -> None:
    where = f"loss.terms.{name}"
    if not isinstance(term, dict) or set(term) != {"weight", "loss"}:
        raise UserError("a term is {weight: number, loss: {_target_: …}}", where=where)
    if not isinstance(term["loss"], Loss):
        raise UserError(f"{type(term['loss']).__name__} is not a loss", where=f"{where}.loss._target_")
    if any(isinstance(v, bool) or not isinstance(v, int | float) or not v >= 0 for v in _values(term["weight"])):
        raise UserError(f"must be a number ≥ 0 or a schedule, got {term['weight']!r}", where=f"{where}.weight")


def _values(weight: Any) -> tuple[Any, ...]:
    """Return the values that bound a weight."""
    return weight.values() if isinstance(weight, Schedule) else (weight,)
