"""Set single weights to zero: the smallest ones, or those that matter least to what goes through them."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from distillkit.compression.activations import input_moments
from distillkit.compression.masks import (
    check_scope,
    check_sparsity,
    hold,
    joined,
    oriented,
    pattern_masks,
    read_pattern,
    share_masks,
    sparsity_notes,
)
from distillkit.compression.variant import Context, Masks, Step, Variant, torch_model
from distillkit.errors import UserError
from distillkit.models.levels import layer_stacks
from distillkit.models.live import LiveModel
from distillkit.models.names import matching
from distillkit.models.onnx import OnnxModel

CAUTION = "zeros are stored and multiplied like any other number: neither size nor speed changes"


class Prune(Step):
    """Zero weights of low scores in the transformer layers' linear maps.

    Everything outside the layers (embeddings, pooler, output head), norms and biases are left alone.
    """

    masks = True

    def __init__(self, sparsity: float | None, pattern: str | None, scope: str, exclude: list[str] | None) -> None:
        if sparsity is not None:
            check_sparsity(sparsity)
        if pattern is not None:
            read_pattern(pattern)
        check_scope(scope)
        self.sparsity = sparsity
        self.pattern = pattern
        self.scope = scope
        self.exclude = exclude or []

    def check(self, start: LiveModel | OnnxModel) -> None:
        """Refuse patterns that match nothing."""
        if isinstance(start, LiveModel):
            prunable(start.model, self.exclude)

    def __call__(self, variant: Variant, context: Context) -> Variant:
        """Prune in place; weights that an earlier step pruned stay pruned."""
        live = torch_model(variant)
        modules = prunable(live.model, self.exclude)
        made = self.make_masks(self.scores(live, modules, context))
        masks = joined({name: oriented(modules[name], mask) for name, mask in made.items()}, variant.masks)
        hold(live.model, masks)
        return Variant(live, masks, {**sparsity_notes(live.model, masks), "caution": CAUTION})

    @abstractmethod
    def scores(self, live: LiveModel, modules: dict[str, nn.Module], context: Context) -> dict[str, Tensor]:
        """Score weights `[outputs, inputs]` by parameter name."""

    def make_masks(self, scores: dict[str, Tensor]) -> Masks:
        """Choose what is kept."""
        if self.pattern is not None:
            return pattern_masks(scores, self.pattern)
        assert self.sparsity is not None
        return share_masks(scores, self.sparsity, self.scope)


class MagnitudePrune(Prune):
    """Zero the weights of small magnitude in the transformer layers' linear maps.

    Args:
        epsilon: Zero every |w| < epsilon; or
        sparsity: the share of the weights to zero, met exactly; or
        pattern: "N:M", such as "2:4": of every M neighbouring inputs of an output, the N largest are kept.
        scope: "layer": the same share of every weight matrix; "row": of every output; "global": the smallest of all
            matrices together, which empties those of small scale first.
        exclude: Modules to leave alone, by shell-style patterns such as "*.layer.0.*".
    """

    def __init__(
        self,
        epsilon: float | None = None,
        sparsity: float | None = None,
        pattern: str | None = None,
        scope: str = "layer",
        exclude: list[str] | None = None,
    ) -> None:
        if [epsilon, sparsity, pattern].count(None) != 2:
            raise UserError("set one of epsilon, sparsity and pattern, and the others to null")
        if epsilon is not None and not epsilon > 0:
            raise UserError(f"must be above 0, got {epsilon}", where="epsilon")
        super().__init__(sparsity, pattern, scope, exclude)
        self.epsilon = epsilon

    def scores(self, live: LiveModel, modules: dict[str, nn.Module], context: Context) -> dict[str, Tensor]:  # noqa: ARG002
        """Return magnitudes."""
        return magnitudes(modules)

    def make_masks(self, scores: dict[str, Tensor]) -> Masks:
        """Choose what is kept."""
        if self.epsilon is not None:
            return {name: values >= self.epsilon for name, values in scores.items()}
        return super().make_masks(scores)


class WandaPrune(Prune):
    """Zero the weights of the lowest |w| · ‖x‖₂, x what reaches them on calibration rows.

    Wanda, Sun et al. 2023, eq. 1.

    Args:
        sparsity: The share of the weights to zero, met exactly (with scope "row": rounded for each output); or
        pattern: "N:M", as of `MagnitudePrune`.
        scope: "row", as in the paper: outputs are not compared with each other; or "layer", "global".
        exclude: Modules to leave alone, by shell-style patterns such as "*.layer.0.*".
    """

    calibrates = True

    def __init__(
        self,
        sparsity: float | None = None,
        pattern: str | None = None,
        scope: str = "row",
        exclude: list[str] | None = None,
    ) -> None:
        if (sparsity is None) == (pattern is None):
            raise UserError("set either sparsity or pattern, and the other to null")
        super().__init__(sparsity, pattern, scope, exclude)

    def scores(self, live: LiveModel, modules: dict[str, nn.Module], context: Context) -> dict[str, Tensor]:
        """Return magnitudes times the norms of the inputs, all norms divided by the square root of the tokens."""
        moments = input_moments(live, context.calibration.batches, modules)
        sizes = magnitudes(modules)
        return {name: size * moments[name].square.sqrt().to(size.device, size.dtype) for name, size in sizes.items()}


def magnitudes(modules: dict[str, nn.Module]) -> dict[str, Tensor]:
    """Return |w| `[outputs, inputs]` of linear maps, float32, by parameter name."""
    return {name: oriented(module, _weight(module)).detach().float().abs() for name, module in modules.items()}


def _weight(module: nn.Module) -> Tensor:
    assert isinstance(module.weight, Tensor)
    return module.weight


def prunable(model: Any, exclude: list[str]) -> dict[str, nn.Module]:
    """Return the linear maps in a transformers model's layers, by the names of their weights.

    Raises:
        UserError: If a pattern matches nothing, or nothing is left to prune.
    """
    stacks = layer_stacks(model, "compress.model")
    left_out = matching(dict(model.named_modules()), exclude, "exclude")
    modules = {
        f"{name}.weight": module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
        and name.startswith(tuple(f"{stack}." for stack in stacks))
        and name not in left_out
    }
    if not modules:
        raise UserError(f"{type(model).__name__} has no linear layers to prune")
    return modules
