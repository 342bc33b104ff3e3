"""A student's outline with the settings of its training: what is frozen, and LoRA's adapters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from distillkit.models.live import LiveModel
from distillkit.schema import TrainSettings
from distillkit.signals import Batch
from distillkit.training.tuning import plan_tuning


@contextmanager
def tuned(student: LiveModel, settings: TrainSettings, row: Batch, steps: int) -> Iterator[int]:
    """Let only what is trained need a gradient, and add adapters, which peft cannot do with fake tensors.

    Args:
        student: An outline.
        settings: Of its training.
        row: A fake batch.
        steps: Of the whole run.

    Yields:
        The number of parameters that are ever trained.
    """
    plan = plan_tuning(student, settings, row, steps)
    for name, parameter in student.model.named_parameters():
        parameter.requires_grad_(name in plan.trained)
    adapter = _adapter(settings.lora.rank or 0)
    handles = [student.model.get_submodule(name).register_forward_hook(adapter) for name in plan.adapted]
    try:
        yield plan.size(student.model, settings)
    finally:
        for handle in handles:
            handle.remove()
        student.requires_grad_(True)


def _adapter(rank: int) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    def add(_module: nn.Module, arguments: tuple[Tensor], output: Tensor) -> Tensor:
        down = torch.empty(rank, arguments[0].shape[-1], requires_grad=True)
        up = torch.empty(output.shape[-1], rank, requires_grad=True)
        return output + functional.linear(functional.linear(arguments[0], down), up)

    return add
