"""Set the smallest weights to zero."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from distillkit.compression.variant import Context, Masks, Step, Variant, matching, torch_model
from distillkit.errors import UserError, did_you_mean
from distillkit.models.anatomy import layer_stack
from distillkit.models.live import LiveModel
from distillkit.models.onnx import OnnxModel

CAUTION = "zeros are stored and multiplied like any other number: neither size nor speed changes"
LARGEST = 2**31 - 1  # the bits of any float32 ≥ 0 are at most this


class MagnitudePrune(Step):
    """Zero the weights of small magnitude in the transformer layers' linear maps.

    Everything outside the layers (embeddings, pooler, output head), norms and biases are left alone.

    Args:
        epsilon: Zero every |w| < epsilon; or
        sparsity: the share of the weights to zero, met exactly.
        scope: "layer": the same share of every weight matrix; "global": the smallest of all matrices together, which
            empties those of small scale first.
        exclude: Modules to leave alone, by shell-style patterns such as "*.layer.0.*".
    """

    def __init__(
        self,
        epsilon: float | None = None,
        sparsity: float | None = None,
        scope: str = "layer",
        exclude: list[str] | None = None,
    ) -> None:
        if (epsilon is None) == (sparsity is None):
            raise UserError("set either epsilon or sparsity, and the other to null")
        if epsilon is not None and not epsilon > 0:
            raise UserError(f"must be above 0, got {epsilon}", where="epsilon")
        if sparsity is not None and not 0 < sparsity < 1:
            raise UserError(f"must lie between 0 and 1, got {sparsity}", where="sparsity")
        if scope not in ("global", "layer"):
            raise UserError(f"unknown scope '{scope}'", where="scope", fix=did_you_mean(scope, ["global", "layer"]))
        self.epsilon = epsilon
        self.sparsity = sparsity
        self.scope = scope
        self.exclude = exclude or []

    def check(self, start: LiveModel | OnnxModel) -> None:
        """Refuse patterns that match nothing."""
        if isinstance(start, LiveModel):
            prunable(start.model, self.exclude)

    def __call__(self, variant: Variant, context: Context) -> Variant:  # noqa: ARG002
        """Prune in place; weights that an earlier step pruned stay pruned."""
        model = torch_model(variant).model
        weights = prunable(model, self.exclude)
        masks = self._masks(weights)
        masks |= {name: mask & masks[name] if name in masks else mask for name, mask in variant.masks.items()}
        hold(model, masks)
        return Variant(variant.model, masks, {**sparsity_notes(model, masks), "caution": CAUTION})

    def _masks(self, weights: dict[str, Tensor]) -> Masks:
        if self.epsilon is not None:
            return {name: weight.detach().float().abs() >= self.epsilon for name, weight in weights.items()}
        assert self.sparsity is not None
        if self.scope == "global":
            return smallest_masks(weights, self.sparsity)
        return {name: smallest_masks({name: weight}, self.sparsity)[name] for name, weight in weights.items()}


def prunable(model: Any, exclude: list[str]) -> dict[str, Tensor]:
    """Return the weights of the linear maps in a transformers model's layers, by parameter name.

    Raises:
        UserError: If a pattern matches nothing, or nothing is left to prune.
    """
    stack = layer_stack(model, "compress.model")
    left_out = matching(dict(model.named_modules()), exclude, "exclude")
    weights = {
        f"{name}.weight": module.weight
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and name.startswith(f"{stack}.") and name not in left_out
    }
    if not weights:
        raise UserError(f"{type(model).__name__} has no linear layers to prune")
    return weights


def smallest_masks(weights: dict[str, Tensor], sparsity: float) -> Masks:
    """Mask exactly round(sparsity · size) weights, the smallest by magnitude; of equal ones the first go.

    The threshold is bisected over the bits of |w|, which are ordered as the numbers are: 31 counts instead of a
    sort, and no copy of all weights.
    """
    count = round(sparsity * sum(weight.numel() for weight in weights.values()))
    low, high = 0, LARGEST
    while low < high:
        middle = (low + high) // 2
        if _count(weights, middle) >= count:
            high = middle
        else:
            low = middle + 1
    ties = count - _count(weights, low - 1)
    masks = {}
    for name, weight in weights.items():
        bits = _bits(weight)
        tied = bits == low
        pruned = tied & (tied.flatten().cumsum(0).view_as(tied) <= ties)
        ties -= int(pruned.sum())
        masks[name] = (bits >= low) & ~pruned
    return masks


def _bits(weight: Tensor) -> Tensor:
    return weight.detach().float().abs().view(torch.int32)


def _count(weights: dict[str, Tensor], bound: int) -> int:
    return sum(int((_bits(weight) <= bound).sum()) for weight in weights.values())


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


def sparsity_notes(model: nn.Module, masks: Masks) -> dict[str, float]:
    """Return the share of zeros in the pruned layers and in the whole model."""
    pruned = [model.get_parameter(name) for name in masks]
    return {"sparsity": _zeros(pruned), "sparsity_of_model": _zeros(list(model.parameters()))}


def _zeros(parameters: Sequence[Tensor]) -> float:
    nonzeros = sum(int(parameter.count_nonzero()) for parameter in parameters)
    return 1 - nonzeros / sum(parameter.numel() for parameter in parameters)
