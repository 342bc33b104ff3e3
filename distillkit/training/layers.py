"""How the student's layers run while it is trained: compiled, or computed again in place of keeping activations."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import wraps
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from distillkit.errors import UserError
from distillkit.features import at_layers
from distillkit.models.levels import layer_stacks
from distillkit.models.live import LiveModel
from distillkit.schema import TrainSettings

COMPILE, RECOMPUTE = "train.compile", "train.activation_checkpointing"


def set_up(live: LiveModel, settings: TrainSettings, features: Collection[str]) -> None:
    """Let the layers run as the settings say, until `put_back`. Hooks of the layers stay outside.

    Args:
        live: The student.
        settings: Of the run.
        features: What a loss captures of it.

    Raises:
        UserError: If the model or this machine cannot do it.
    """
    if settings.compile:
        inside = sorted(name for name in features if not at_layers(name))
        if inside:
            raise UserError(
                f"a loss looks at {inside[0]}, inside what is compiled", where=COMPILE, fix="set it to false"
            )
        _try_compiler(live.device)
        for layer in _layers(live.model, COMPILE):
            layer.forward = torch.compile(layer.forward, dynamic=True)
    if settings.activation_checkpointing:
        for layer in _layers(live.model, RECOMPUTE):
            layer.forward = _recomputed(layer.forward)


def put_back(live: LiveModel, settings: TrainSettings) -> None:
    """Undo `set_up`."""
    if settings.compile or settings.activation_checkpointing:
        for layer in _layers(live.model, COMPILE):
            del layer.forward


def _layers(model: Any, key: str) -> list[Any]:
    return [layer for stack in layer_stacks(model, key) for layer in model.get_submodule(stack)]


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that keeps its inputs only, and computes the rest again in the backward pass."""

    @wraps(forward)
    def run(*arguments: Any, **named: Any) -> Any:
        if torch.is_grad_enabled():
            return checkpoint(forward, *arguments, use_reentrant=False, **named)
        return forward(*arguments, **named)

    return run


def _try_compiler(device: torch.device) -> None:
    try:
        torch.compile(torch.sin)(torch.ones(8, device=device))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        fix = "set it to false; distillkit doctor says more"
        raise UserError(f"torch.compile does not work here ({reason})", where=COMPILE, fix=fix) from error
