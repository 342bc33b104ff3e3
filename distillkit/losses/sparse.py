"""What a logit loss compares, whatever kind of logits the teacher gives: one definition for all of them.

A teacher that lists only k classes of an item (`SparseLogits`) is compared in buckets: its listed classes, and one
more that holds all others. At temperature T the bucket's logit is what makes its probability the sum of theirs,
T · log Σ exp(z / T): for the student over its own logits, for the teacher as if what is left were spread evenly. Then
the loss sees `[items, k + 1]` logits like any others. With every class listed this is the dense comparison.

At the temperature of the teacher's log-probabilities the bucket is exact. At another temperature T the listed classes
are exact among each other, and what the bucket holds is bounded. With m classes of probability r that are each at most
b, Σ p^(1/T) lies between (r/b) b^(1/T), were they as uneven as can be, and m (r/m)^(1/T), were they even, if T is above
the teacher's; below it, the other way round. It is taken as even.

Where the teacher also has random draws from all others, a loss that is linear in its probabilities gets those, each for
its share of the rest, and no bucket: its gradient is that of the whole distribution on average over draws. Its value
is not: the entropy of what was drawn is less than the teacher's, so that a divergence comes out too high.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from distillkit.errors import UserError
from distillkit.losses.base import LogitLoss
from distillkit.losses.shared import TaughtLoss
from distillkit.signals import ABSENT, DenseLogits, SparseLogits


def compare(
    losses: Sequence[LogitLoss], student: Tensor, teacher: DenseLogits | SparseLogits | None, labels: Tensor
) -> list[Tensor]:
    """Return each loss of each item `[items]`, differentiable in the student.

    Args:
        losses: Which.
        student: float32 logits `[items, classes]`.
        teacher: About the same items; None if no loss needs it.
        labels: As `Batch.labels`, of these items.

    Raises:
        UserError: If a loss needs what a sparse teacher did not keep.
    """
    buckets: dict[tuple[float, bool, bool, bool], tuple[Tensor, Tensor, Tensor]] = {}
    values = []
    for loss in losses:
        if not loss.needs_teacher or teacher is None:
            values.append(loss.per_item(student, None, labels))
        elif isinstance(teacher, DenseLogits):
            values.append(loss.per_item(student, teacher.values.to(student.dtype), labels))
        else:
            how = (loss.temperature, loss.lumps, loss.absolute) if isinstance(loss, TaughtLoss) else (1.0, True, False)
            listed = listing(teacher, loss)
            key = *how, listed is teacher
            if key not in buckets:
                buckets[key] = in_buckets(student, listed, labels, how[0], lumps=how[1], absolute=how[2])
            values.append(loss.per_item(*buckets[key]))
    return values


def listing(teacher: SparseLogits, loss: LogitLoss) -> SparseLogits:
    """Return what a loss compares the student with: with the draws, if there are some and it is right with them.

    Raises:
        UserError: If there is nothing else.
    """
    if not teacher.has_draws:
        return teacher
    if isinstance(loss, TaughtLoss) and loss.linear and loss.temperature == teacher.temperature:
        return teacher.with_draws()
    if teacher.ids.shape[-1] == 0:
        raise UserError(
            f"{type(loss).__name__} needs the teacher's likeliest classes, and only random draws were stored",
            where="loss",
            fix=f"use ForwardKL or SoftCrossEntropy at temperature {teacher.temperature:g}, or store top_k_sampled",
        )
    return teacher


def in_buckets(
    student: Tensor, teacher: SparseLogits, labels: Tensor, temperature: float, *, lumps: bool, absolute: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Reduce both models and the labels to the classes that the teacher lists, and one for all others.

    Classes that only one model has take no part: neither listed ones nor, among the others, those beyond the student's.

    Args:
        student: Logits `[items, classes]`.
        teacher: About the same items.
        labels: int64 `[items]`; others are passed on as they are.
        temperature: At which the bucket's logit is right.
        lumps: Whether there is a bucket for the classes that are not listed.
        absolute: Whether the teacher's logits are needed as they are, and not up to a constant.

    Returns:
        Logits of student and teacher `[items, k + 1]` (k without the bucket), `ABSENT` in both where a slot is empty;
        and the labels' buckets.
    """
    shared = min(student.shape[-1], teacher.classes)
    ids, there = within(teacher, shared)
    theirs = teacher.log_probs.to(student.dtype)
    if absolute:
        theirs = theirs + _normaliser(teacher).to(student.dtype).unsqueeze(-1)
    theirs = (theirs * teacher.temperature).where(there, ABSENT)
    slots = _slots(labels, ids, there, shared)
    if not lumps:
        return student.gather(-1, ids).where(there, ABSENT), theirs, slots
    theirs = torch.cat([theirs, lump(teacher, there, shared, temperature).to(student.dtype).unsqueeze(-1)], dim=-1)
    return _Buckets.apply(student, ids, there, shared, temperature), theirs, slots


def within(teacher: SparseLogits, classes: int) -> tuple[Tensor, Tensor]:
    """Return the listed classes `[items, k]`, 0 for those beyond `classes` and in empty slots; and which are left."""
    there = (teacher.ids >= 0) & (teacher.ids < classes)
    return teacher.ids.where(there, 0), there


def lump(teacher: SparseLogits, there: Tensor, classes: int, temperature: float) -> Tensor:
    """Return the logit `[items]` of all others among `classes` as one, `ABSENT` where there are none."""
    count = classes - there.sum(dim=-1)
    value = temperature * count.to(teacher.rest.dtype).log() + teacher.temperature * teacher.each
    return value.where(count > 0, ABSENT)


class _Buckets(torch.autograd.Function):
    """The student's logits `[items, k + 1]`: of its listed classes, and T · log Σ exp(z / T) over the others.

    By hand because autograd would hold several tensors of the width of the vocabulary. The derivative of the last one
    by the logit of a class that it holds is that class's share of its probability.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, ids: Tensor, there: Tensor, shared: int, temperature: float) -> Tensor:
        listed = student.gather(-1, ids).where(there, ABSENT)
        # Adding ABSENT takes the listed classes out of the sum; an empty slot adds nothing to class 0.
        others = student[..., :shared].scatter_add(-1, ids, there.to(student.dtype) * ABSENT)
        top = others.amax(dim=-1, keepdim=True)
        others.sub_(top)
        shares = (others if temperature == 1 else others.div_(temperature)).exp_()
        total = shares.sum(dim=-1, keepdim=True)
        ctx.save_for_backward(shares.div_(total), ids, there)
        ctx.classes = student.shape[-1]
        return torch.cat([listed, top + temperature * total.log()], dim=-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        shares, ids, there = ctx.saved_tensors
        spread = (shares * gradient[..., -1:]).scatter_add_(-1, ids, gradient[..., :-1].where(there, 0.0))
        beyond = ctx.classes - shares.shape[-1]  # what the teacher does not have
        return functional.pad(spread, (0, beyond)) if beyond else spread, *([None] * 4)


def _normaliser(teacher: SparseLogits) -> Tensor:
    if teacher.normaliser is None:
        raise UserError(
            "compares logits, and the teacher's log-probabilities came without their normaliser",
            where="loss",
            fix="compare centred logits, or store the normaliser",
        )
    return teacher.normaliser


def _slots(labels: Tensor, ids: Tensor, there: Tensor, shared: int) -> Tensor:
    """Return the bucket of each label: its slot, k if it is not listed, as it is if it is no class of both models."""
    if labels.is_floating_point():
        return labels
    hit = (ids == labels.unsqueeze(-1)) & there
    slot = torch.where(hit.any(dim=-1), hit.int().argmax(dim=-1), ids.shape[-1])
    outside = ids.shape[-1] + 1  # no class of both models: nobody's bucket
    return torch.where(labels < 0, labels, torch.where(labels < shared, slot, outside))
