"""Early stopping: how long a run has gone without getting better."""

from __future__ import annotations

from dataclasses import dataclass
from math import isnan

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast

from distillkit.errors import UserError
from distillkit.schema import TrainSettings


@dataclass
class Patience:
    """Evaluations since the last one that was better than all before it by more than `min_delta`.

    Attributes:
        waited: How many.
        mark: The metric of that better one; None before the first.
    """

    waited: int = 0
    mark: float | None = None

    def see(self, value: float, higher: bool, min_delta: float) -> None:
        """Take note of an evaluation; `higher` is better, or lower."""
        gain = 0.0 if self.mark is None else (value - self.mark if higher else self.mark - value)
        if not isnan(value) and (self.mark is None or gain > min_delta):
            self.waited, self.mark = 0, value
        else:
            self.waited += 1

    def ends(self, patience: int | None) -> bool:
        """Tell whether a run has waited long enough; None: it never has."""
        return patience is not None and self.waited >= patience


def agreed(value: float, accelerator: Accelerator) -> float:
    """Return the main process's value, so that no rounding lets the processes part."""
    return broadcast(torch.tensor(value, dtype=torch.float64, device=accelerator.device)).item()


def check_patience(settings: TrainSettings, evaluated: bool) -> None:
    """Refuse early stopping where nothing is evaluated."""
    if settings.patience is not None and not evaluated:
        raise UserError(
            "there is nothing to evaluate: no validation split, or a loss that looks at no logits",
            where="train.patience",
            fix="name a validation split, or set it to null",
        )
