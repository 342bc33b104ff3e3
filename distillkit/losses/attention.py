"""Attention: where the student's tokens look is drawn to where the teacher's look."""

from __future__ import annotations

import torch
from torch import Tensor

from distillkit.losses.heads import ATTENTION, Heads, MapKL, MapLoss
from distillkit.losses.schedule import Schedule


class AttentionKL(MapKL):
    """T² · KL(A_t ‖ A_s), with A = softmax(q kᵀ / (√d T)) a query's distribution over the keys that it may see.

    Per query token, in nats, the mean over heads and over mapped layers. At T = 1, of the last layers, it is MiniLM's
    attention transfer (Wang et al. 2020); T² as in `distillkit.losses.divergences`.

    Args:
        layers: "uniform", "last", "first", "skip", or pairs [[student's, teacher's], …].
        heads: None compares head with head, which needs equal numbers; "mean" the mean of all heads' distributions;
            a number R the attention of R heads made of the queries and keys of all heads, concatenated and cut.
        temperature: T.
    """

    def __init__(
        self, layers: str | list[list[int]] = "uniform", heads: Heads = None, temperature: float | Schedule = 1.0
    ) -> None:
        super().__init__([ATTENTION], layers, heads, temperature)


class AttentionScoreMSE(MapLoss):
    """Mean over the keys that a query may see of (a_s − a_t)², a = q kᵀ / √d   (TinyBERT, Jiao et al. 2020, eq. 7).

    Per query token, in squared scores, the mean over heads and over mapped layers. TinyBERT adds the layers up and
    averages over padding too.

    Args:
        layers: As `AttentionKL`.
        heads: As `AttentionKL`; "mean" compares the mean of all heads' scores.
    """

    def __init__(self, layers: str | list[list[int]] = "uniform", heads: Heads = None) -> None:
        super().__init__([ATTENTION], layers, heads)

    def per_query(self, student: Tensor, teacher: Tensor, seen: Tensor) -> Tensor:
        """Return squared scores."""
        if self.heads == "mean":
            student, teacher = student.mean(dim=1, keepdim=True), teacher.mean(dim=1, keepdim=True)
        error = torch.where(seen, student - teacher, 0.0)
        return error.square().sum(dim=-1) / seen.sum(dim=-1).clamp(min=1)
