"""Masks of pruned weights: made of scores, held at zero, and counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from distillkit.compression.variant import Masks
from distillkit.errors import UserError, did_you_mean

SCOPES = ("row", "layer", "global")
LOWEST, HIGHEST = -(2**31), 2**31 - 1  # of the keys of float32 numbers


def check_scope(scope: str) -> None:
    """Refuse an unknown scope."""
    if scope not in SCOPES:
        raise UserError(f"unknown scope '{scope}'", where="scope", fix=did_you_mean(scope, list(SCOPES)))


def check_sparsity(sparsity: float) -> None:
    """Refuse what is no share."""
    if not 0 < sparsity < 1:
        raise UserError(f"must lie between 0 and 1, got {sparsity}", where="sparsity")


def read_pattern(pattern: str) -> tuple[int, int]:
    """Read "N:M": of every M weights of a row, N are kept.

    Raises:
        UserError: If it is no such pattern.
    """
    kept, _, group = pattern.partition(":")
    if not (kept.isdigit() and group.isdigit() and 0 < int(kept) < int(group)):
        raise UserError(f"must be kept:group, such as 2:4, got '{pattern}'", where="pattern")
    return int(kept), int(group)


def share_masks(scores: Mapping[str, Tensor], sparsity: float, scope: str) -> Masks:
    """Prune a share of the weights, those of the lowest scores.

    Args:
        scores: Of the weights `[outputs, inputs]`, by parameter name.
        sparsity: The share, met exactly.
        scope: "row": of every output; "layer": of every matrix; "global": of all matrices together.
    """
    if scope == "global":
        return smallest_masks(scores, sparsity)
    if scope == "layer":
        return {name: smallest_masks({name: values}, sparsity)[name] for name, values in scores.items()}
    return {name: _row_mask(values, round(sparsity * values.shape[1])) for name, values in scores.items()}


def pattern_masks(scores: Mapping[str, Tensor], pattern: str) -> Masks:
    """Keep the N highest of every M neighbouring inputs of every output.

    Raises:
        UserError: If a matrix has no whole number of groups.
    """
    kept, group = read_pattern(pattern)
    masks = {}
    for name, values in scores.items():
        outputs, inputs = values.shape
        if inputs % group:
            raise UserError(f"{name} has {inputs} inputs, no multiple of {group}", where="pattern")
        groups = values.reshape(-1, group)
        masks[name] = _row_mask(groups, group - kept).view(outputs, inputs)
    return masks


def _row_mask(values: Tensor, count: int) -> Tensor:
    """Mask the `count` lowest values of every row; of equal ones the first go."""
    lowest = values.argsort(dim=1, stable=True)[:, :count]
    return torch.ones_like(values, dtype=torch.bool).scatter_(1, lowest, False)


def smallest_masks(scores: Mapping[str, Tensor], sparsity: float) -> Masks:
    """Mask exactly round(sparsity · size) weights, those of the lowest scores; of equal ones the first go.

    The threshold is bisected over keys that are ordered as float32 numbers are: 32 counts instead of a sort, and no
    copy of all scores.
    """
    count = round(sparsity * sum(values.numel() for values in scores.values()))
    low, high = LOWEST, HIGHEST
    while low < high:
        middle = (low + high) // 2
        if _count(scores, middle) >= count:
            high = middle
        else:
            low = middle + 1
    ties = count - _count(scores, low - 1)
    masks = {}
    for name, values in scores.items():
        keys = _keys(values)
        tied = keys == low
        pruned = tied & (tied.flatten().cumsum(0).view_as(tied) <= ties)
        ties -= int(pruned.sum())
        masks[name] = (keys >= low) & ~pruned
    return masks


def _keys(values: Tensor) -> Tensor:
    """Return whole numbers that are ordered as float32 numbers are."""
    bits = (values.detach().float() + 0.0).view(torch.int32)  # −0 + 0 is 0
    return bits ^ ((bits >> 31) & HIGHEST)


def _count(scores: Mapping[str, Tensor], bound: int) -> int:
    return sum(int((_keys(values) <= bound).sum()) for values in scores.values())


def oriented(module: nn.Module, values: Tensor) -> Tensor:
    """Turn values of a linear map's weights to `[outputs, inputs]`, or back: GPT-2 keeps them transposed."""
    return values.T if isinstance(module, Conv1D) else values


@torch.no_grad()
def hold(model: nn.Module, masks: Masks) -> None:
    """Set the pruned weights to zero, in place: after pruning, and after every optimiser step that follows."""
    for name, mask in masks.items():
        weight = model.get_parameter(name)
        weight.mul_(mask.to(weight.device))


def revived(model: nn.Module, masks: Masks) -> int:
    """Count the pruned weights that are no longer zero."""
    alive = 0
    for name, mask in masks.items():
        weight = model.get_parameter(name).detach()
        alive += int(weight[~mask.to(weight.device)].count_nonzero())
    return alive


def joined(masks: Masks, earlier: Masks) -> Masks:
    """Keep what both masks keep, so that weights that an earlier step pruned stay pruned."""
    both = {name: mask & earlier[name].to(mask.device) if name in earlier else mask for name, mask in masks.items()}
    return {**earlier, **both}


def sparsity_notes(model: nn.Module, masks: Masks) -> dict[str, float]:
    """Return the share of zeros in the pruned layers and in the whole model."""
    pruned = [model.get_parameter(name) for name in masks]
    return {"sparsity": _zeros(pruned), "sparsity_of_model": _zeros(list(model.parameters()))}


def _zeros(parameters: Sequence[Tensor]) -> float:
    nonzeros = sum(int(parameter.count_nonzero()) for parameter in parameters)
    return 1 - nonzeros / sum(parameter.numel() for parameter in parameters)
