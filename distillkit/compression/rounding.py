"""Round weights to few bits: symmetric, with one scale a row or a group of neighbouring inputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from distillkit.errors import UserError

SHRINKS = 20  # scales that are tried: the one that keeps the largest weight, and smaller ones
LEAST_SHRINK = 0.5


@dataclass(frozen=True)
class Grid:
    """What weights are rounded to.

    Attributes:
        bits: Of a weight.
        group: Neighbouring inputs that share a scale; None: all inputs of an output.
    """

    bits: int
    group: int | None

    @property
    def lowest(self) -> int:
        """Smallest code."""
        return -(2 ** (self.bits - 1))

    @property
    def highest(self) -> int:
        """Largest code."""
        return 2 ** (self.bits - 1) - 1

    def width(self, inputs: int, name: str) -> int:
        """Return how many inputs share a scale.

        Raises:
            UserError: If the inputs cannot be divided so.
        """
        width = self.group or inputs
        if inputs % width:
            fits = next(size for size in (128, 96, 64, 48, 32, 24, 16, 8, 4, 2, 1) if inputs % size == 0)
            raise UserError(
                f"{name} has {inputs} inputs, which {width} does not divide",
                where="group_size",
                fix=f"set it to {fits}, or to null for one scale an output",
            )
        return width


def scales(weight: Tensor, grid: Grid, width: int, importance: Tensor | None = None) -> Tensor:
    """Return the scales of least squared error, of the few that are tried: `[outputs, inputs / width]`.

    Args:
        weight: `[outputs, inputs]`.
        grid: What it is rounded to.
        width: Inputs that share a scale.
        importance: `[inputs]`: what the squared error of each input counts; all alike if None.
    """
    groups = weight.view(len(weight), -1, width)
    counts = torch.ones(weight.shape[1]) if importance is None else importance
    counts = counts.to(weight).view(1, -1, width)
    largest = groups.abs().amax(dim=-1, keepdim=True) / grid.highest
    largest = torch.where(largest > 0, largest, torch.ones_like(largest))
    best, least = largest, torch.full_like(largest, torch.inf)
    for shrink in torch.linspace(1, LEAST_SHRINK, SHRINKS).tolist():
        tried = largest * shrink
        error = (counts * (_rounded(groups, tried, grid) - groups).square()).sum(dim=-1, keepdim=True)
        best, least = torch.where(error < least, tried, best), torch.minimum(error, least)
    return best.squeeze(-1)


def rounded(weight: Tensor, scale: Tensor, grid: Grid) -> Tensor:
    """Round weights `[outputs, inputs]` to the nearest multiple of their scale `[outputs, groups]` that has a code."""
    groups = weight.view(len(weight), scale.shape[1], -1)
    return _rounded(groups, scale.unsqueeze(-1), grid).view_as(weight)


def _rounded(values: Tensor, scale: Tensor, grid: Grid) -> Tensor:
    return (values / scale).round().clamp(grid.lowest, grid.highest) * scale
