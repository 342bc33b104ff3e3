"""Losses on maps `[heads, length, length]`: products of queries, keys and values, head by head."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import product
from math import gcd, log, sqrt
from typing import Literal

import torch
from torch import Tensor

from distillkit.errors import UserError
from distillkit.features import ModelShape
from distillkit.losses.base import FeatureLoss
from distillkit.losses.items import at_once, exact, full_precision, seen_keys, token_items, token_mask
from distillkit.losses.layers import check_layers, layer_pairs
from distillkit.losses.schedule import Schedule
from distillkit.losses.shared import kl, soften
from distillkit.signals import Batch, Signal

ATTENTION = ("query", "key")
Heads = Literal["mean"] | int | None
CPU_BUDGET = 1 << 20  # elements of a map that exist at a time, one row's at least; this many stay in a CPU's cache
GPU_BUDGET = 1 << 24


class MapLoss(FeatureLoss):
    """Sum over relations, mean over mapped layers, of a loss on two models' maps; the item is the query token.

    A map is a bᵀ / √d, with a and b the queries, keys or values `[batch, heads, length, d]` of a layer; keys that are
    grouped are repeated for each head that shares them. A token meets no padding, and nothing that comes after it if
    either model is causal.

    Args:
        relations: Which pairs (a, b) of "query", "key" and "value".
        layers: A layer map.
        heads: Of unequal numbers: "mean" compares the mean over the heads, a number R those that come of
            concatenating all heads and cutting into R. None: one to one.
    """

    def __init__(self, relations: Sequence[tuple[str, str]], layers: str | list[list[int]], heads: Heads) -> None:
        super().__init__()
        check_layers(layers)
        if isinstance(heads, int) and heads < 1:
            raise UserError(f"must be at least 1, got {heads}", where="heads")
        self.relations = list(relations)
        self.layers, self.heads = layers, heads
        self.pairs: list[tuple[int, int]] = []
        self.own_heads = (0, 0)
        self.causal = False

    def bind(self, student: ModelShape, teacher: ModelShape) -> None:
        """Resolve the layer map, and check that the heads can be compared."""
        self.pairs = layer_pairs(self.layers, student.depth, teacher.depth)
        _check_heads(self.heads, student, teacher)
        if ATTENTION in self.relations:
            _check_direction(student, teacher)
        self.own_heads = (student.heads, teacher.heads)
        self.causal = student.causal or teacher.causal
        parts = {part for relation in self.relations for part in relation}
        self.student_features = frozenset(f"layers.{ours}.{part}" for ours, _ in self.pairs for part in parts)
        self.teacher_features = frozenset(f"layers.{theirs}.{part}" for _, theirs in self.pairs for part in parts)

    def mask(self, batch: Batch) -> Tensor:
        """Return the tokens that are not padding."""
        return token_items(batch)

    def forward(self, student: Signal, teacher: Signal, batch: Batch) -> Tensor:
        """Return the sum over the items."""
        with full_precision(batch):
            parts = [
                self._between(
                    [student.features[f"layers.{ours}.{part}"] for part in relation],
                    [teacher.features[f"layers.{theirs}.{part}"].detach() for part in relation],
                    batch,
                )
                for (ours, theirs), relation in product(self.pairs, self.relations)
            ]
            return torch.stack(parts).sum() / len(self.pairs)

    def per_query(self, student: Tensor, teacher: Tensor, seen: Tensor) -> Tensor:
        """Return the loss of each head and query.

        Args:
            student: Map `[rows, heads, length, length]`.
            teacher: Likewise, with as many heads unless `heads` is "mean".
            seen: bool, broadcasts to the maps: what a query may look at.

        Returns:
            `[rows, heads, length]`, heads being 1 for "mean"; zero or any finite number for padding.
        """
        raise NotImplementedError

    def _between(self, student: Sequence[Tensor], teacher: Sequence[Tensor], inputs: Batch) -> Tensor:
        """Sum over the queries of one layer and relation, so many rows at a time that the maps fit the budget."""
        tokens = token_mask(inputs)
        ours = [self._heads(tensor, self.own_heads[0], tokens) for tensor in student]
        theirs = [self._heads(tensor, self.own_heads[1], tokens) for tensor in teacher]
        batch, _, length, _ = ours[0].shape
        # Without an attention mask the row is the item: the mean over its positions.
        weights = ours[0].new_full((batch, length), 1 / length) if tokens is None else tokens.to(ours[0].dtype)
        keys = (
            ours[0].new_ones((batch, 1, 1, length), dtype=torch.bool) if tokens is None else seen_keys(inputs, tokens)
        )
        budget = CPU_BUDGET if weights.device.type == "cpu" else GPU_BUDGET
        rows = max(1, budget // (max(ours[0].shape[1], theirs[0].shape[1]) * length**2))
        pieces = zip(*(tensor.split(rows) for tensor in (*ours, *theirs, keys, weights)), strict=True)
        return torch.stack([at_once(partial(self._rows, piece[2:]), *piece[:2]) for piece in pieces]).sum()

    def _rows(self, rest: Sequence[Tensor], *student: Tensor) -> Tensor:
        *teacher, keys, weights = rest
        length = keys.shape[-1]
        seen = keys & keys.new_ones(length, length).tril() if self.causal else keys
        values = self.per_query(_map(*student), _map(*teacher), seen)
        return (values.mean(dim=1) * weights).sum()

    def _heads(self, tensor: Tensor, own: int, tokens: Tensor | None) -> Tensor:
        """Bring `[batch, heads or fewer, length, d]` to the heads that are compared; padding becomes zero."""
        tensor = exact(tensor)
        if tokens is not None:
            tensor = tensor.masked_fill(~tokens[:, None, :, None], 0.0)
        if tensor.shape[1] < own:
            tensor = tensor.repeat_interleave(own // tensor.shape[1], dim=1)
        if isinstance(self.heads, int):
            tensor = tensor.transpose(1, 2).flatten(2).unflatten(2, (self.heads, -1)).transpose(1, 2)
        return tensor


class MapKL(MapLoss):
    """T² · KL(p ‖ q) of each query, mean over heads; p and q are the softmax over what it sees of its map over T.

    Args:
        relations: As `MapLoss`.
        layers: As `MapLoss`.
        heads: As `MapLoss`.
        temperature: T.
    """

    def __init__(
        self,
        relations: Sequence[tuple[str, str]],
        layers: str | list[list[int]],
        heads: Heads,
        temperature: float | Schedule,
    ) -> None:
        super().__init__(relations, layers, heads)
        self.temperature = self.temperature_from(temperature)

    def per_query(self, student: Tensor, teacher: Tensor, seen: Tensor) -> Tensor:
        """Return nats times T²."""
        return self.temperature**2 * kl(self._log(teacher, seen), self._log(student, seen))

    def _log(self, scores: Tensor, seen: Tensor) -> Tensor:
        """Return log-probabilities, finite where they are of zero; a query that sees nothing is uniform."""
        hidden = torch.finfo(scores.dtype).min
        logs = soften(scores, self.temperature).masked_fill(~seen, hidden).log_softmax(dim=-1)
        if self.heads == "mean":
            logs = logs.logsumexp(dim=1, keepdim=True) - log(scores.shape[1])
        return logs


def _map(left: Tensor, right: Tensor) -> Tensor:
    return (left / sqrt(left.shape[-1])) @ right.transpose(-1, -2)


def _width(shape: ModelShape) -> int:
    """Return the width of all heads together; it need not be the model's."""
    return shape.heads * shape.head_width


def _check_heads(heads: Heads, student: ModelShape, teacher: ModelShape) -> None:
    common = gcd(_width(student), _width(teacher))
    if heads is None and student.heads != teacher.heads:
        raise UserError(
            f"the student has {student.heads} attention heads and the teacher {teacher.heads}",
            where="heads",
            fix=f"set it to mean, or to a number of relation heads that divides {common}",
        )
    for shape, model in ((student, "student"), (teacher, "teacher")):
        if isinstance(heads, int) and _width(shape) % heads:
            raise UserError(
                f"{heads} does not divide {_width(shape)}, the width of the {model}'s heads together",
                where="heads",
                fix=f"choose a divisor of {common}",
            )


def _check_direction(student: ModelShape, teacher: ModelShape) -> None:
    """Refuse to compare attention that looks back with attention that looks both ways."""
    if student.causal != teacher.causal:
        causal, other = ("student", "teacher") if student.causal else ("teacher", "student")
        raise UserError(
            f"tokens of the {causal} see only what is before them, those of the {other} see everything",
            where="layers",
            fix="use losses on hidden states, or relations other than query-key",
        )
