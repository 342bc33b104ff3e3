"""Logit losses, each over the items that it counts; those of a language model all in one pass over the vocabulary.

`[items, vocab]` never exists as a whole: a chunk of items is multiplied with both heads, every loss and its gradient
with respect to the chunk's logits is computed, and the gradients are added to those of the hidden states and of the
head. So memory does not grow with the number of items.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from distillkit.losses.base import LogitLoss
from distillkit.losses.chunks import Pass
from distillkit.losses.items import exact
from distillkit.losses.sparse import compare
from distillkit.signals import DenseLogits, HeadLogits, Logits


@dataclass(frozen=True)
class WeightedTerm:
    """One term, the items it counts, and what its sum is multiplied by."""

    loss: LogitLoss
    mask: Tensor  # bool [items]
    scale: Tensor  # float32 scalar: weight / items of the whole optimiser step


def logit_terms(
    student: Logits, teacher: Logits | None, labels: Tensor, terms: Sequence[WeightedTerm]
) -> tuple[Tensor, Tensor]:
    """Compute Σ scale · Σ loss over the items.

    Args:
        student: Dense, or a head, whose logits then never exist as a whole.
        teacher: Logits over the same items, of any kind; None if no term needs them.
        labels: As `Batch.labels`.
        terms: What to compute.

    Returns:
        The scaled total, differentiable in the student; and the unscaled sum of each term `[terms]`, detached.
    """
    if isinstance(student, HeadLogits):
        return vocabulary_pass(student, teacher, labels, terms)
    logits = exact(student.rows(0, len(student)))
    sums = [logits[:0].sum()] * len(terms)  # zero, but with a gradient
    for items, active in groups([term.mask for term in terms]):
        losses = [terms[k].loss for k in active]
        said = teacher[items] if teacher is not None and any(loss.needs_teacher for loss in losses) else None
        if isinstance(said, HeadLogits):
            said = DenseLogits(said.rows(0, len(said)))
        values = compare(losses, logits[items], said, labels[items])
        for k, value in zip(active, values, strict=True):
            sums[k] = sums[k] + value.sum()
    total = torch.stack(sums)
    return (total * torch.stack([term.scale for term in terms])).sum(), total.detach()


def vocabulary_pass(
    student: HeadLogits, teacher: Logits | None, labels: Tensor, terms: Sequence[WeightedTerm]
) -> tuple[Tensor, Tensor]:
    """Do what `logit_terms` does. The gradients are made on the way and given away once: no second backward pass."""
    inputs = student.hidden, student.weight, student.bias
    wanted = [torch.is_grad_enabled() and tensor is not None and tensor.requires_grad for tensor in inputs]
    return _VocabularyPass.apply(*inputs, student, teacher, labels, terms, wanted)


def groups(masks: Sequence[Tensor]) -> Iterator[tuple[slice | Tensor, list[int]]]:
    """Part the items by which terms count them; yield the items of each part and the indices of its terms.

    So no loss sees an item that it does not count, whose logits need not be finite; and no product is made of items
    that nobody counts.
    """
    code = torch.stack([mask.long() << k for k, mask in enumerate(masks)]).sum(dim=0)  # a bit for each term
    for pattern in code.unique().tolist():
        if pattern:
            items = (code == pattern).nonzero().squeeze(1)
            active = [k for k in range(len(masks)) if pattern >> k & 1]
            yield slice(0, len(code)) if len(items) == len(code) else items, active


class _VocabularyPass(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        student: HeadLogits,
        teacher: Logits | None,
        labels: Tensor,
        terms: Sequence[WeightedTerm],
        wanted: list[bool],
    ) -> tuple[Tensor, Tensor]:
        scales = torch.stack([term.scale for term in terms]).tolist()
        run = Pass(student, teacher, labels, wanted)
        # In units of the largest scale gradients are of size 1, which fp16 can hold.
        unit = (max(scales) or 1.0) if run.dtype == torch.float16 else 1.0
        sums = torch.zeros(len(terms), dtype=exact(weight[:0]).dtype, device=hidden.device)
        for items, active in groups([term.mask for term in terms]):
            sums[active] += run.add(items, [(terms[k].loss, scales[k] / unit) for k in active])
        ctx.gradients, ctx.unit = (run.hidden, run.weight, run.bias), unit
        ctx.dtypes = hidden.dtype, weight.dtype, None if bias is None else bias.dtype
        ctx.mark_non_differentiable(sums)
        return (sums * sums.new_tensor(scales)).sum(), sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor, _sums: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("the gradients of a vocabulary pass can be taken once")
        made, ctx.gradients = ctx.gradients, None  # given away: a copy would be as large as the head
        factor = scale * ctx.unit
        if scale.is_cuda or factor != 1:  # asking costs a GPU more than multiplying
            made = [None if gradient is None else gradient.mul_(factor) for gradient in made]
        cast = (
            None if gradient is None else gradient.to(dtype) for gradient, dtype in zip(made, ctx.dtypes, strict=True)
        )
        return *cast, *([None] * 5)
