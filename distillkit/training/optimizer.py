"""AdamW without decay on norms and biases, and the learning rate as a function of the step."""

from __future__ import annotations

from math import cos, pi

import torch
from torch import nn

from distillkit.errors import UserError
from distillkit.schema import Schedule, TrainSettings


def make_optimizer(module: nn.Module, settings: TrainSettings) -> torch.optim.AdamW:
    """Build AdamW; parameters of fewer than two dimensions (norms, biases) do not decay."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    first, second = settings.betas
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=settings.learning_rate,
        betas=(first, second),
        eps=settings.epsilon,
        fused=True,
    )


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
    return int(settings.warmup if settings.warmup >= 1 else settings.warmup * steps)


def check_settings(settings: TrainSettings) -> None:
    """Refuse values that cannot work, by their key."""
    for key in ("batch_size", "learning_rate", "epochs", "log_every", "evaluate_batch_size", "epsilon"):
        _require(getattr(settings, key) > 0, key, "must be above 0", getattr(settings, key))
    for key in ("micro_batch_size", "max_steps", "max_grad_norm", "evaluate_every", "checkpoint_every"):
        value = getattr(settings, key)
        _require(value is None or value > 0, key, "must be above 0 or null", value)
    for key in ("weight_decay", "warmup", "final_learning_rate"):
        _require(getattr(settings, key) >= 0, key, "must not be negative", getattr(settings, key))
    betas = settings.betas
    _require(len(betas) == 2 and all(0 <= beta < 1 for beta in betas), "betas", "must be two numbers in [0, 1)", betas)
    _require(settings.keep_checkpoints >= 1, "keep_checkpoints", "must be at least 1", settings.keep_checkpoints)


def _require(fine: bool, key: str, problem: str, value: object) -> None:
    if not fine:
        raise UserError(f"{problem}, got {value}", where=f"train.{key}")
