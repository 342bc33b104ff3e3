"""What a model's modules get to see: moments of the inputs of linear maps, and the states between layers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from distillkit.models.live import LiveModel
from distillkit.signals import Batch


@dataclass(frozen=True)
class Moments:
    """Of the inputs of a linear map, over all positions that hold tokens.

    Attributes:
        mean: float64 `[features]`.
        square: float64 `[features]`: mean of the squares.
    """

    mean: Tensor
    square: Tensor

    @property
    def variance(self) -> Tensor:
        """float64 `[features]`."""
        return (self.square - self.mean.square()).clamp(min=0)


@torch.no_grad()
def input_moments(live: LiveModel, batches: Iterable[Batch], modules: Mapping[str, nn.Module]) -> dict[str, Moments]:
    """Run a model over batches and take the moments of what its linear maps get: name → moments."""
    sums: dict[str, Tensor] = {}
    counts = dict.fromkeys(modules, 0)
    decoder = _decoder_modules(live.model)

    def look(name: str, module: nn.Module, inputs: Tensor, batch: Batch) -> None:
        values = tokens(inputs, batch, id(module) in decoder).double()
        total = torch.stack([values.sum(dim=0), values.square().sum(dim=0)])
        sums[name] = sums[name] + total if name in sums else total
        counts[name] += len(values)

    for batch in batches:
        placed = batch.to(live.device)
        with ExitStack() as hooks:
            for name, module in modules.items():
                hook = module.register_forward_pre_hook(
                    lambda module, inputs, name=name, batch=placed: look(name, module, inputs[0], batch)
                )
                hooks.callback(hook.remove)
            live.eval()(placed)
    return {name: Moments(*(total / counts[name]).unbind()) for name, total in sums.items()}


def tokens(values: Tensor, batch: Batch, in_decoder: bool = False) -> Tensor:
    """Return the rows `[tokens, features]` of activations `[batch, length, features]` that are no padding."""
    flat = values.reshape(-1, values.shape[-1])
    mask = batch.counted if in_decoder else batch.inputs.get("attention_mask")
    if mask is None or mask.numel() != len(flat):
        return flat
    return flat[mask.reshape(-1).bool()]


@contextmanager
def layer_states(layers: Iterable[nn.Module]) -> Iterator[list[Tensor]]:
    """Collect, while the model runs once, what goes into each layer and what comes out of the last."""
    states: list[Tensor] = []
    with ExitStack() as hooks:
        for layer in layers:
            hook = layer.register_forward_pre_hook(
                lambda _, inputs, named: states.append(_first(inputs or tuple(named.values()))), with_kwargs=True
            )
            hooks.callback(hook.remove)
        hook = layer.register_forward_hook(lambda _module, _inputs, output: states.append(_first(output)))
        hooks.callback(hook.remove)
        yield states


def _first(values: Any) -> Tensor:
    return values[0] if isinstance(values, tuple) else values


def _decoder_modules(model: Any) -> set[int]:
    if not model.config.is_encoder_decoder:
        return set()
    return {id(module) for module in model.get_decoder().modules()}
