"""Which items a loss on features counts, in which precision it computes, and how its memory stays that of a chunk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from distillkit.signals import Batch


def token_mask(batch: Batch) -> Tensor | None:
    """Return which positions hold tokens: bool `[batch, length]`; None without an attention mask: all of them do."""
    if batch.segments is not None:
        return batch.segments >= 0
    mask = batch.inputs.get("attention_mask")
    return None if mask is None else mask.bool()


def seen_keys(batch: Batch, tokens: Tensor) -> Tensor:
    """Return which positions a query may look at in either direction: bool `[batch, 1, 1 or length, length]`.

    Args:
        batch: Of one text a row, or several.
        tokens: bool `[batch, length]`: which positions hold tokens.
    """
    keys = tokens[:, None, None]
    if batch.segments is None:
        return keys
    return keys & (batch.segments[:, :, None] == batch.segments[:, None])[:, None]


def row_mask(batch: Batch) -> Tensor:
    """Return that every row counts: bool `[batch]`."""
    return torch.ones(len(batch.counted), dtype=torch.bool, device=batch.counted.device)


def token_items(batch: Batch) -> Tensor:
    """Return the items of a loss that looks at every token.

    Without an attention mask (images) the number of positions is not known before the model has run, but there is no
    padding either: the row is the item then, and its value the mean over its positions.
    """
    tokens = token_mask(batch)
    return row_mask(batch) if tokens is None else tokens


def exact(tensor: Tensor) -> Tensor:
    """Return float32, or float64 as it is."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def full_precision(batch: Batch) -> torch.autocast:
    """Switch autocast off while a loss is computed."""
    return torch.autocast(batch.counted.device.type, enabled=False)


def at_once(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """Return `function(*tensors)`, a scalar, having computed its gradient already.

    What the function makes on its way, such as `[heads, length, length]` for each row, is gone on return; autograd
    alone would keep it until the backward pass. Only first derivatives.
    """
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return _AtOnce.apply(function, *tensors)
    return function(*tensors)


class _AtOnce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        with torch.enable_grad():
            leaves = [tensor.detach().requires_grad_() for tensor in tensors]
            value = function(*leaves)
        ctx.save_for_backward(*torch.autograd.grad(value, leaves))
        return value.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        return None, *(gradient * scale for gradient in ctx.saved_tensors)
