"""Distil into a model that already feels the rounding that is to come."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from distillkit.compression.prune import prunable
from distillkit.compression.retrain import Retrain, merge
from distillkit.compression.variant import Context, Variant, torch_model
from distillkit.errors import UserError
from distillkit.models.live import LiveModel
from distillkit.models.onnx import OnnxModel

BITS = range(2, 9)


class QuantisationAware(Retrain):
    """Train with the recipe's loss and teacher while linear maps compute with rounded weights and inputs.

    Weights are rounded with one scale an output, inputs with one a token; gradients pass as if nothing was rounded
    (straight-through, Bengio et al. 2013; Jacob et al. 2018). What comes out are float weights that a step such as
    `OnnxInt8` or `WeightOnly` rounds at little cost.

    Args:
        weight_bits: From 2 to 8.
        activation_bits: Likewise; None leaves the inputs as they are.
        exclude: Modules to leave alone, by shell-style patterns.
        train: What differs from the recipe's `train` settings.
    """

    def __init__(
        self,
        weight_bits: int = 8,
        activation_bits: int | None = 8,
        exclude: list[str] | None = None,
        train: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(train)
        for key, bits in (("weight_bits", weight_bits), ("activation_bits", activation_bits)):
            if bits is not None and bits not in BITS:
                raise UserError(f"must be from 2 to 8, got {bits}", where=key)
        self.weight_bits = weight_bits
        self.activation_bits = activation_bits
        self.exclude = exclude or []

    def check(self, start: LiveModel | OnnxModel) -> None:
        """Refuse patterns that match nothing, and layers that are no plain linear maps."""
        if isinstance(start, LiveModel):
            self._linear(start)

    def __call__(self, variant: Variant, context: Context) -> Variant:
        """Retrain in place."""
        live = torch_model(variant)
        assert context.retrain is not None
        with rounding(self._linear(live), self.weight_bits, self.activation_bits):
            context.retrain(live, variant.masks, merge(context.settings, self.train))
        notes = {"dtype": "float32", "trained_for": f"w{self.weight_bits}a{self.activation_bits or 32}"}
        return Variant(live, variant.masks, notes)

    def _linear(self, live: LiveModel) -> dict[str, nn.Linear]:
        found = prunable(live.model, self.exclude)
        linear = {name: module for name, module in found.items() if isinstance(module, nn.Linear)}
        if len(linear) < len(found):
            raise UserError(f"the layers of {type(live.model).__name__} are convolutions, not linear maps")
        return linear


@contextmanager
def rounding(modules: Mapping[str, nn.Linear], weight_bits: int, activation_bits: int | None) -> Iterator[None]:
    """Let linear maps compute with rounded weights and inputs inside; their parameters stay what they are."""

    def install(module: nn.Linear) -> None:
        def forward(inputs: Tensor) -> Tensor:
            seen = inputs if activation_bits is None else straight_through(inputs, activation_bits)
            return functional.linear(seen, straight_through(module.weight, weight_bits), module.bias)

        module.__dict__["forward"] = forward

    try:
        for module in modules.values():
            install(module)
        yield
    finally:
        for module in modules.values():
            module.__dict__.pop("forward", None)


def straight_through(values: Tensor, bits: int) -> Tensor:
    """Round to a symmetric grid with one scale for each last dimension; the gradient is that of the values.

    Returns:
        Values of the same shape and dtype.
    """
    highest = 2 ** (bits - 1) - 1
    with torch.no_grad():
        scale = (values.abs().amax(dim=-1, keepdim=True) / highest).clamp(min=torch.finfo(values.dtype).tiny)
        change = (values / scale).round().clamp(-highest, highest) * scale - values
    return values + change
