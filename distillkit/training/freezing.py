"""Freezing: which parameters are never trained, and from which step on the others are (Howard & Ruder 2018)."""

from __future__ import annotations

from collections.abc import Iterable
from math import ceil
from typing import Any

from distillkit.errors import UserError
from distillkit.models.levels import Levels
from distillkit.models.names import as_list, matching
from distillkit.schema import TrainSettings
from distillkit.training.optimizer import share

FREEZE, UNFREEZE = "train.freeze", "train.unfreeze"


def numbers(settings: TrainSettings) -> list[int]:
    """Return the numbers of layers among what is to be frozen."""
    return [part for part in as_list(settings.freeze) if isinstance(part, int)]


def frozen_names(model: Any, settings: TrainSettings, levels: Levels | None) -> set[str]:
    """Return the parameters that `train.freeze` keeps as they are.

    Args:
        model: A transformers model.
        settings: A number N freezes the embeddings and the lowest N layers; a pattern what it names. A weight that
            goes by several names (tied embeddings) is frozen by any of them.
        levels: Of the model; needed for numbers.

    Raises:
        UserError: If the model has no such layers, or a pattern matches nothing.
    """
    own = {id(parameter): name for name, parameter in model.named_parameters()}
    named = dict(model.named_parameters(remove_duplicate=False))
    frozen: set[str] = set()
    for part in as_list(settings.freeze):
        if isinstance(part, str):
            frozen |= {own[id(named[name])] for name in matching(named, [part], FREEZE)}
            continue
        assert levels is not None
        if part > levels.depth:
            raise UserError(f"the model has {levels.depth} layers, got {part}", where=FREEZE)
        frozen |= {name for name in own.values() if levels.of(name) <= part}
    return frozen


def thaw_steps(names: Iterable[str], settings: TrainSettings, levels: Levels, steps: int) -> dict[str, int]:
    """Return the step from which each parameter is trained.

    The topmost level is trained from the start; the next ones follow from the top down at even distances, and the
    lowest after `train.unfreeze` of the run. A pure function of the settings: a resumed run does the same.

    Args:
        names: The parameters that are ever trained.
        settings: Of the run.
        levels: Of the model.
        steps: Of the whole run.
    """
    assert settings.unfreeze is not None
    window = share(settings.unfreeze, steps)
    if window >= steps:
        raise UserError(f"must be below the run's {steps} steps, got {window}", where=UNFREEZE)
    own = {name: levels.of(name) for name in names}
    order = sorted(set(own.values()), reverse=True)
    opens = {level: ceil(window * place / max(len(order) - 1, 1)) for place, level in enumerate(order)}
    return {name: opens[level] for name, level in own.items()}
