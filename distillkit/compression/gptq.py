"""Round weights one input after the other, and let those that are left make up for the error."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from distillkit.compression.activations import tokens
from distillkit.compression.replay import Replay
from distillkit.compression.rounding import Grid, rounded
from distillkit.signals import Batch

DAMPING = 0.01  # of the mean of the diagonal, added to it
BLOCK = 128  # inputs that are settled before the rest is updated


def compensated(weight: Tensor, product: Tensor, scale: Tensor, grid: Grid) -> Tensor:
    """Round weights so that what the layer answers to the inputs it was seen with changes least.

    Inputs are taken in the order of their weight in H = XᵀX. The error that rounding input q leaves is spread over the
    inputs that are not rounded yet, δ = −(w_q − round(w_q)) / [H⁻¹]_qq · (H⁻¹)_{q,:}, by the rows of H⁻¹'s upper
    Cholesky factor   (GPTQ, Frantar et al. 2023, eq. 2 and section 3.3). Scales are fixed beforehand, so that the order
    is free.

    Args:
        weight: `[outputs, inputs]`.
        product: XᵀX, `[inputs, inputs]`.
        scale: `[outputs, groups]`.
        grid: What the weights are rounded to.
    """
    values, factor, order = (
        weight.double().clone(),
        product.double().clone(),
        product.diagonal().argsort(descending=True),
    )
    dead = factor.diagonal() == 0
    factor.diagonal()[dead] = 1
    factor.diagonal().add_(DAMPING * factor.diagonal().mean())
    factor = torch.linalg.cholesky(factor[order][:, order])
    upper = torch.linalg.cholesky(torch.cholesky_inverse(factor), upper=True)
    steps = scale.double().repeat_interleave(weight.shape[1] // scale.shape[1], dim=1)[:, order]
    values = values[:, order]
    settled = torch.empty_like(values)
    for start in range(0, values.shape[1], BLOCK):
        stop = min(start + BLOCK, values.shape[1])
        errors = torch.empty_like(values[:, start:stop])
        for column in range(start, stop):
            settled[:, column] = rounded(values[:, column : column + 1], steps[:, column : column + 1], grid)[:, 0]
            errors[:, column - start] = (values[:, column] - settled[:, column]) / upper[column, column]
            values[:, column:stop] -= errors[:, column - start].outer(upper[column, column:stop])
        values[:, stop:] -= errors @ upper[start:stop, stop:]
    return settled[:, order.argsort()].to(weight.dtype)


def input_products(replay: Replay, modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Run a model as far as some linear layers and return XᵀX of what each of them gets, over all tokens: float64."""
    found: dict[str, Tensor] = {}
    model = replay.live.model
    inside = set(map(id, model.get_decoder().modules())) if model.config.is_encoder_decoder else set()

    def look(name: str, inputs: Tensor, batch: Batch) -> None:
        values = tokens(inputs, batch, id(modules[name]) in inside).double()
        found[name] = found.get(name, 0) + values.T @ values

    replay.run(look, modules)
    return found
