"""Losses on vectors: one a token or one a row, from mapped layers or named modules, projected to one width."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from distillkit.errors import UserError
from distillkit.features import ModelShape
from distillkit.losses.base import FeatureLoss
from distillkit.losses.items import exact, full_precision, row_mask, token_items, token_mask
from distillkit.losses.layers import check_layers, layer_pairs
from distillkit.losses.projectors import Projector, projector
from distillkit.signals import Batch, Signal

Pooling = Literal["first", "last", "mean", "pooled"]
EMBEDDINGS = "embeddings"
TOP = [[-1, -1]]  # the last layer with the last


class VectorLoss(FeatureLoss):
    """Mean over mapped places of a loss on pairs of vectors; the item is the token, or the row where one pools.

    Args:
        layers: A layer map (`distillkit.losses.layers`), or "embeddings" for the input of the first layer; None for
            `usual_layers`, unless modules are named.
        modules: Pairs [student's, teacher's] of module paths, in place of layers.
        pooling: How a row's tokens become one vector: the first or last token that is not padding, or the mean of
            those. "pooled": the modules give one vector a row already. None: every token is an item.
    """

    usual_layers: str | list[list[int]] = "uniform"

    def __init__(
        self, layers: str | list[list[int]] | None, modules: list[list[str]] | None, pooling: Pooling | None
    ) -> None:
        super().__init__()
        if layers is not None and modules is not None:
            raise UserError("both layers and modules are given", where="layers", fix="set one of them to null")
        if modules is not None and (not modules or any(len(pair) != 2 for pair in modules)):
            raise UserError(f"must be [[student's path, teacher's path], …], got {modules}", where="modules")
        if modules is None and pooling == "pooled":
            fix = "use first, last or mean"
            raise UserError("a layer gives one vector a token, nothing pooled", where="pooling", fix=fix)
        self.layers = self.usual_layers if layers is None else layers
        check_layers(self.layers, EMBEDDINGS)
        self.paths, self.pooling = modules, pooling
        self.pairs: list[tuple[str, str]] = []

    def bind(self, student: ModelShape, teacher: ModelShape) -> None:
        """Resolve the layer map."""
        if self.paths is not None:
            self.pairs = [(f"module:{ours}", f"module:{theirs}") for ours, theirs in self.paths]
        elif self.layers == EMBEDDINGS:
            self.pairs = [(EMBEDDINGS, EMBEDDINGS)]
        else:
            mapped = layer_pairs(self.layers, student.depth, teacher.depth)
            self.pairs = [(f"layers.{ours}.hidden", f"layers.{theirs}.hidden") for ours, theirs in mapped]
        self.student_features = frozenset(ours for ours, _ in self.pairs)
        self.teacher_features = frozenset(theirs for _, theirs in self.pairs)

    def mask(self, batch: Batch) -> Tensor:
        """Return the tokens that are not padding, or all rows."""
        return token_items(batch) if self.pooling is None else row_mask(batch)

    def forward(self, student: Signal, teacher: Signal, batch: Batch) -> Tensor:
        """Return the sum over the items of the mean over mapped places."""
        with full_precision(batch):
            parts = [self._sum(self.per_vector(*pair, batch), batch) for pair in self.vectors(student, teacher, batch)]
            return torch.stack(parts).mean()

    def per_vector(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """Return the loss `[vectors]` of pairs of vectors `[vectors, width]`; those of a row are the `[batch]`'s."""
        raise NotImplementedError

    def vectors(self, student: Signal, teacher: Signal, batch: Batch) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the vectors `[vectors, width]` of student and teacher at every mapped place."""
        tokens = token_mask(batch)
        places = None if tokens is None or self.pooling is not None else tokens.flatten().nonzero().squeeze(1)
        for ours, theirs in self.pairs:
            yield (
                self._pick(ours, student.features[ours], tokens, places),
                self._pick(theirs, teacher.features[theirs], tokens, places).detach(),
            )

    def _pick(self, name: str, feature: Tensor, tokens: Tensor | None, places: Tensor | None) -> Tensor:
        """Select or pool `[batch, length, width]` (`[batch, width]` if pooled); padding takes no part at all."""
        if self.pooling == "pooled":
            _check(feature.ndim == 2, name, feature, "one vector a row", "set pooling: first, last or mean")
            return exact(feature)
        fits = feature.ndim == 3 and (tokens is None or feature.shape[:2] == tokens.shape)
        _check(fits, name, feature, "one vector a token", "set pooling: pooled if it is one vector a row")
        if self.pooling is not None:
            return pool(exact(feature), tokens, self.pooling)
        flat = feature.flatten(0, 1)
        return exact(flat if places is None else flat[places])

    def _sum(self, values: Tensor, batch: Batch) -> Tensor:
        """Add up over the items; without an attention mask a row is one item, the mean over its positions."""
        if self.pooling is None and token_mask(batch) is None:
            values = values.view(len(batch.counted), -1).mean(dim=1)
        return values.sum()


class ProjectedLoss(VectorLoss):
    """A loss on vectors of one width: the student's are mapped to the teacher's by a trained projector a place.

    Args:
        layers: As `VectorLoss`.
        modules: As `VectorLoss`. No projector: the widths are not known before the weights, and must be the same.
        pooling: As `VectorLoss`.
        projector: "linear", "orthogonal", or None to refuse unequal widths (`distillkit.losses.projectors`).
    """

    projectors: nn.ModuleList

    def __init__(
        self,
        layers: str | list[list[int]] | None,
        modules: list[list[str]] | None,
        pooling: Pooling | None,
        projector: Projector | None,
    ) -> None:
        super().__init__(layers, modules, pooling)
        self.projector = projector
        self.projectors = nn.ModuleList()

    def bind(self, student: ModelShape, teacher: ModelShape) -> None:
        """Resolve the layer map and make the projectors."""
        super().bind(student, teacher)
        width = student.width if self.paths is None else teacher.width
        self.projectors = nn.ModuleList(projector(self.projector, width, teacher.width) for _ in self.pairs)

    def vectors(self, student: Signal, teacher: Signal, batch: Batch) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the student's projected vectors and the teacher's."""
        selected = super().vectors(student, teacher, batch)
        for project, names, (ours, theirs) in zip(self.projectors, self.pairs, selected, strict=True):
            projected = project(ours)
            if projected.shape != theirs.shape:
                raise UserError(
                    f"the student's {names[0]} gives {list(projected.shape)} and the teacher's {names[1]}"
                    f" {list(theirs.shape)} (vectors, width)",
                    where="modules",
                    fix="choose modules that give the same",
                )
            yield projected, theirs


def pool(feature: Tensor, tokens: Tensor | None, how: Pooling) -> Tensor:
    """Make one vector `[batch, width]` of each row of `[batch, length, width]`, wherever its padding is.

    Args:
        feature: Of every position.
        tokens: bool `[batch, length]`: which hold tokens; None if all do.
        how: first, last or mean.
    """
    if tokens is None:
        tokens = torch.ones(feature.shape[:2], dtype=torch.bool, device=feature.device)
    if how == "mean":
        count = tokens.sum(dim=1, keepdim=True).clamp(min=1)
        return torch.where(tokens.unsqueeze(2), feature, 0.0).sum(dim=1) / count
    order = torch.arange(1, tokens.shape[1] + 1, device=tokens.device) * tokens
    index = order.argmax(dim=1) if how == "last" else tokens.int().argmax(dim=1)
    return feature[torch.arange(len(feature), device=index.device), index]


def unit(vectors: Tensor) -> Tensor:
    """Divide `[…, width]` by its L2 norm; a zero vector stays zero and gets a finite gradient."""
    norm = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return vectors / torch.where(norm > 0, norm, 1.0)


def _check(fits: bool, name: str, feature: Tensor, wanted: str, fix: str) -> None:
    if not fits:
        what = f"{name.removeprefix('module:')} gives {list(feature.shape)}, not {wanted}"
        raise UserError(what, where="modules", fix=fix)
