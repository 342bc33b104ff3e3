"""Contrast: the student's vector of a row shall be nearer to the teacher's of that row than to those of others."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from distillkit.losses.projectors import Projector
from distillkit.losses.schedule import Schedule
from distillkit.losses.together import gather
from distillkit.losses.vectors import TOP, Pooling, ProjectedLoss, unit
from distillkit.signals import Batch


class InfoNCE(ProjectedLoss):
    """−log( exp(cos(P s_i, t_i)/τ) / Σ_j exp(cos(P s_i, t_j)/τ) )   (van den Oord et al. 2018).

    Between student and teacher as in CRD (Tian et al. 2020), with the batch in place of its memory bank. Per row, in
    nats, the mean over mapped layers. j runs over the rows of the micro-batches that all processes work
    on at the moment: a larger micro-batch or more processes make it harder. There is no factor τ². A row alone
    costs nothing; identical models do not give zero.

    Args:
        layers: As `HiddenMSE`; None for the last with the last.
        modules: As `HiddenMSE`.
        pooling: How a row becomes one vector: "first" or "last" token, "mean", or "pooled" if the modules give one.
        temperature: τ.
        projector: P where the widths differ: "linear", "orthogonal", or None to refuse.
    """

    usual_layers = TOP

    def __init__(
        self,
        layers: str | list[list[int]] | None = None,
        modules: list[list[str]] | None = None,
        pooling: Pooling = "mean",
        temperature: float | Schedule = 0.07,
        projector: Projector | None = "linear",
    ) -> None:
        super().__init__(layers, modules, pooling, projector)
        self.temperature = self.temperature_from(temperature)

    def per_vector(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """Return nats `[batch]`."""
        own = unit(teacher)
        candidates, first = gather(own if batch.real else own[:0])
        if not batch.real:  # rows of somebody else's that count nowhere; they only took part in the gathering
            candidates, first = own, 0
        answers = torch.arange(first, first + len(own), device=own.device)
        return functional.cross_entropy(unit(student) @ candidates.T / self.temperature, answers, reduction="none")
