"""Relations: how a model's tokens, or a batch's rows, stand to each other; no projector is needed.

The losses between rows compare the rows of the micro-batches that all processes work on at the moment: their value
depends on how many rows that are, and not on how many processes they are spread over.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import huber_loss

from distillkit.errors import UserError, did_you_mean
from distillkit.losses.heads import Heads, MapKL
from distillkit.losses.schedule import Schedule
from distillkit.losses.together import gather
from distillkit.losses.vectors import TOP, Pooling, VectorLoss, unit
from distillkit.signals import Batch

PARTS = ("query", "key", "value")
RELATIONS = {f"{left}-{right}": (left, right) for left in PARTS for right in PARTS}
MINILM2 = ("query-query", "key-key", "value-value")


class RelationKL(MapKL):
    """T² · Σ over relations of KL(R_t ‖ R_s), with R = softmax(a bᵀ / (√d T)) for a relation a-b.

    Per query token, in nats: the SUM over relations, as both papers have it, the mean over relation heads and mapped
    layers. MiniLM (Wang et al. 2020, arXiv 2002.10957): ["query-key", "value-value"] of the last layers, with equal
    numbers of heads. MiniLMv2 (Wang et al. 2021, arXiv 2012.15828): the default relations, R relation heads, and of a
    large teacher a layer that is not the last: [[-1, 20]] of 24.

    Args:
        relations: Of "query", "key" and "value", such as "value-value"; each weighs 1.
        layers: As `AttentionKL`; None for the last with the last.
        heads: R relation heads are made of those of a model by concatenating and cutting (MiniLMv2: 48 for a width of
            768 or 64 for 1024). None: the models' own, equal in number; "mean": the mean of their relations.
        temperature: T.
    """

    def __init__(
        self,
        relations: Sequence[str] = MINILM2,
        layers: str | list[list[int]] | None = None,
        heads: Heads = None,
        temperature: float | Schedule = 1.0,
    ) -> None:
        for relation in relations:
            if relation not in RELATIONS:
                fix = did_you_mean(relation, list(RELATIONS))
                raise UserError(f"unknown relation '{relation}'", where="relations", fix=fix)
        if not relations:
            raise UserError("none is given", where="relations", fix=f"such as {', '.join(MINILM2)}")
        super().__init__([RELATIONS[name] for name in relations], TOP if layers is None else layers, heads, temperature)


class RowLoss(VectorLoss):
    """A loss on how rows stand to each other; the item is the row. A row alone costs nothing.

    Args:
        layers: As `HiddenMSE`; None for the last with the last.
        modules: As `HiddenMSE`; widths may differ.
        pooling: How a row becomes one vector: "first" or "last" token, "mean", or "pooled" if the modules give one.
    """

    usual_layers = TOP

    def __init__(
        self,
        layers: str | list[list[int]] | None = None,
        modules: list[list[str]] | None = None,
        pooling: Pooling = "first",
    ) -> None:
        super().__init__(layers, modules, pooling)

    def per_vector(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """Return the loss of each row `[batch]` among those of all processes.

        A row is compared with the others' as they are; what it does to theirs goes into its gradient here, not there.
        """
        rows = slice(None) if batch.real else slice(0)  # rows of somebody else's only take part in the gathering
        others, first = gather(student.detach()[rows])
        answers, _ = gather(teacher[rows])
        if not batch.real or len(others) == len(student):
            return self.between(student, teacher)
        own = slice(first, first + len(student))
        values = self.between(torch.cat([others[:first], student, others[own.stop :]]), answers)
        rest = values.sum() - values[own].sum()
        return values[own] + (rest - rest.detach()) / len(student)

    def between(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the loss of each row `[rows]` from the vectors of all, `[rows, width]` of either model."""
        raise NotImplementedError


class RKDDistance(RowLoss):
    """Mean over the other rows j of Huber(‖s_i − s_j‖/μ_s − ‖t_i − t_j‖/μ_t)   (RKD, Park et al. 2019).

    s, t `[batch, width]`; μ is the mean of a model's non-zero distances; Huber(x) = ½x² up to |x| = 1, |x| − ½ beyond.
    The paper's code also averages over the batch pairs (i, i), which are zero: its value is (batch − 1)/batch of this.

    Args:
        layers: As `HiddenMSE`; None for the last with the last.
        modules: As `HiddenMSE`; widths may differ.
        pooling: How a row becomes one vector: "first" or "last" token, "mean", or "pooled" if the modules give one.
    """

    def between(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the loss of each row, without unit."""
        error = huber_loss(_distances(student), _distances(teacher), reduction="none")
        return error.sum(dim=1) / max(len(error) - 1, 1)


class RKDAngle(RowLoss):
    """Mean over pairs i ≠ k of the other rows of Huber(cos∠ s_i s_j s_k − cos∠ t_i t_j t_k)   (RKD, Park et al. 2019).

    s, t `[batch, width]`; the item is the vertex j; ∠ is that between the lines to i and to k. An angle with a line
    of no length has cosine 0. The paper's code averages over all batch³ triples, also those that are no angles.
    Memory: batch² · width and batch³ numbers.

    Args:
        layers: As `HiddenMSE`; None for the last with the last.
        modules: As `HiddenMSE`; widths may differ.
        pooling: How a row becomes one vector: "first" or "last" token, "mean", or "pooled" if the modules give one.
    """

    def between(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the loss of each row, without unit."""
        error = huber_loss(_cosines(student), _cosines(teacher), reduction="none")
        same = torch.eye(len(error), dtype=torch.bool, device=error.device)
        pairs = (len(error) - 1) * (len(error) - 2)
        return error.masked_fill(same, 0.0).sum(dim=(1, 2)) / max(pairs, 1)


class SimilarityPreserving(RowLoss):
    """Mean over the rows j of (G_s[i, j] − G_t[i, j])², G the rows of X Xᵀ, each over its norm.

    X `[batch, width]`. Where all rows of a step are compared, the mean over i is (1/batch²) ‖G_s − G_t‖², as Tung and
    Mori 2019 have it.

    Args:
        layers: As `HiddenMSE`; None for the last with the last.
        modules: As `HiddenMSE`; widths may differ.
        pooling: How a row becomes one vector: "first" or "last" token, "mean", or "pooled" if the modules give one.
    """

    def between(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the loss of each row, without unit."""
        return (unit(student @ student.T) - unit(teacher @ teacher.T)).square().mean(dim=1)


def _distances(vectors: Tensor) -> Tensor:
    """Return the distances `[batch, batch]` over their mean; those of zero stay zero and have no gradient."""
    distances = torch.cdist(vectors, vectors, compute_mode="donot_use_mm_for_euclid_dist")
    mean = distances.sum() / (distances > 0).sum().clamp(min=1)
    return distances / torch.where(mean > 0, mean, 1.0)


def _cosines(vectors: Tensor) -> Tensor:
    """Return the cosine `[batch, batch, batch]` of the angle at row j between the lines to rows i and k."""
    lines = unit(vectors.unsqueeze(0) - vectors.unsqueeze(1))
    return lines @ lines.transpose(1, 2)
