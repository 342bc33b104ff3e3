"""AdamW without decay on norms and biases, and the learning rate as a function of the step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from math import cos, pi

import torch
from torch import nn

from distillkit.schema import Optimizer, Schedule, TrainSettings


def make_optimizer(
    module: nn.Module, settings: TrainSettings, scales: Mapping[nn.Parameter, float] | None = None
) -> torch.optim.Optimizer:
    """Build AdamW; parameters of fewer than two dimensions (norms, biases) do not decay.

    In 8 bits it keeps the state of large weights block by block (Dettmers et al. 2022, arXiv 2110.02861).

    Args:
        module: What is trained: its parameters that require a gradient.
        settings: Of the run.
        scales: What the learning rate is multiplied by, where that is not 1. Each group keeps its own as "scale".
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in module.parameters():
        if parameter.requires_grad:
            scale = 1.0 if scales is None else scales.get(parameter, 1.0)
            decay = settings.weight_decay if parameter.ndim >= 2 else 0.0
            groups.setdefault((scale, decay), []).append(parameter)
    first, second = settings.betas
    make: Callable[..., torch.optim.Optimizer] = partial(torch.optim.AdamW, fused=True)
    if settings.optimizer is Optimizer.adamw_8bit:
        from bitsandbytes.optim import AdamW8bit

        make = AdamW8bit
    return make(
        [
            {"params": groups[scale, decay], "weight_decay": decay, "scale": scale}
            for scale, decay in sorted(groups, reverse=True)
        ],
        lr=settings.learning_rate,
        betas=(first, second),
        eps=settings.epsilon,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group its share of a learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"]


def learning_rate(step: int, steps: int, settings: TrainSettings) -> float:
    """Return the learning rate of a step.

    Args:
        step: Counted from 0.
        steps: Of the whole run.
        settings: `warmup` rises linearly from 0 (not included) to the full rate; then `schedule` falls to
            `final_learning_rate` × the full rate, which the step after the last would have.
    """
    warmup = warmup_steps(steps, settings)
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(steps - warmup, 1)
    fall = {
        Schedule.constant: 1.0,
        Schedule.linear: 1.0 - progress,
        Schedule.cosine: 0.5 * (1.0 + cos(pi * progress)),
    }[settings.schedule]
    if settings.schedule is Schedule.constant:
        return settings.learning_rate
    return settings.learning_rate * (settings.final_learning_rate + (1.0 - settings.final_learning_rate) * fall)


def warmup_steps(steps: int, settings: TrainSettings) -> int:
    """Return the number of warm-up steps: a share of all steps if below 1, else the number itself."""
    return share(settings.warmup, steps)


def share(amount: float, steps: int) -> int:
    """Return a number of steps: `amount` is a share of all steps if below 1, else the number itself."""
    return int(amount if amount >= 1 else amount * steps)
