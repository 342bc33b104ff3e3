"""The pass over the vocabulary: all logit losses of an objective, chunk by chunk, with their gradients.

`[items, vocab]` never exists as a whole: a chunk of items is multiplied with both heads, every term and its
gradient with respect to the chunk's logits is computed, and the gradients are added to those of the hidden
states and of the head. So memory does not grow with the number of items.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from distillkit.losses.base import LogitLoss
from distillkit.signals import HeadLogits, Logits, chunks


@dataclass(frozen=True)
class WeightedTerm:
    """One term, the items it counts, and what its sum is multiplied by."""

    loss: LogitLoss
    mask: Tensor  # bool [items]
    scale: Tensor  # float32 scalar: weight / items of the whole optimiser step


def vocabulary_pass(
    student: HeadLogits, teacher: Logits | None, labels: Tensor, terms: Sequence[WeightedTerm]
) -> tuple[Tensor, Tensor]:
    """Compute Σ scale · Σ loss over the items without holding all logits.

    Args:
        student: Hidden states `[items, d]` and head.
        teacher: Logits over the same items, of any kind; None if no term needs them.
        labels: int64 `[items]`.
        terms: What to compute.

    Returns:
        The scaled total, differentiable in the student's hidden states and head; and the unscaled sum of each
        term `[terms]`, detached.
    """
    return _VocabularyPass.apply(student.hidden, student.weight, student.bias, student, teacher, labels, terms)


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
    ) -> tuple[Tensor, Tensor]:
        wanted = [tensor is not None and tensor.requires_grad for tensor in (hidden, weight, bias)]
        grad_hidden = torch.zeros_like(hidden) if wanted[0] else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if wanted[1] else None
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if wanted[2] and bias is not None else None
        total = torch.zeros((), device=hidden.device)
        unit = torch.stack([term.scale for term in terms]).max()  # in it gradients are of size 1, which fp16 can hold
        sums = torch.zeros(len(terms), device=hidden.device)
        kind = hidden.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
        states, head, offset = hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
        for start, stop in chunks(len(student), student.classes):
            product = functional.linear(states[start:stop], head, offset)
            taught = None if teacher is None else teacher.rows(start, stop).float()
            with torch.enable_grad():
                leaf = product.float().detach().requires_grad_(any(wanted))
                logits = student.finish(leaf)
                parts = [
                    (term.loss.per_item(logits, taught, labels[start:stop]) * term.mask[start:stop]).sum()
                    for term in terms
                ]
                scaled = torch.stack([term.scale * part for term, part in zip(terms, parts, strict=True)]).sum()
            sums += torch.stack(parts).detach()
            total += scaled.detach()
            if not any(wanted):
                continue
            (gradient,) = torch.autograd.grad(scaled, leaf, grad_outputs=1 / unit)
            if grad_bias is not None:
                grad_bias += gradient.sum(dim=0)
            gradient = gradient.to(dtype)
            if grad_hidden is not None:
                grad_hidden[start:stop] = gradient @ head
            if grad_weight is not None:
                grad_weight += gradient.T @ states[start:stop]
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias, unit)
        ctx.dtypes = (weight.dtype, None if bias is None else bias.dtype)
        ctx.mark_non_differentiable(sums)
        return total, sums

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, unit = ctx.saved_tensors
        factor = gradients[0] * unit
        return (
            None if hidden is None else hidden * factor,
            None if weight is None else (weight * factor).to(ctx.dtypes[0]),
            None if bias is None else (bias * factor).to(ctx.dtypes[1]),
            *([None] * 4),
        )
