"""Distil again after pruning, with the zeros held at zero."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from distillkit.compression.masks import revived, sparsity_notes
from distillkit.compression.variant import Context, Kind, Step, Variant, torch_model
from distillkit.errors import UserError, did_you_mean
from distillkit.schema import TrainSettings


class Retrain(Step):
    """Train the variant with the recipe's loss and teacher; pruned weights stay zero after every step.

    Args:
        train: What differs from the recipe's `train` settings, such as `{max_steps: 200, learning_rate: 3e-5}`.
    """

    accepts = frozenset({Kind.float32})
    trains = True

    def __init__(self, train: dict[str, Any] | None = None) -> None:
        self.train = train or {}
        merge(TrainSettings(), self.train)

    def __call__(self, variant: Variant, context: Context) -> Variant:
        """Retrain in place."""
        live = torch_model(variant)
        assert context.retrain is not None
        context.retrain(live, variant.masks, merge(context.settings, self.train))
        alive = revived(live.model, variant.masks)
        if alive:
            raise RuntimeError(f"retraining revived {alive} pruned weights")
        return Variant(live, variant.masks, sparsity_notes(live.model, variant.masks) if variant.masks else {})


def merge(settings: TrainSettings, changes: dict[str, Any]) -> TrainSettings:
    """Return train settings with some changed.

    Raises:
        UserError: If a key is unknown or a value has the wrong type.
    """
    known = [setting.name for setting in fields(TrainSettings)]
    for key, value in changes.items():
        if key not in known:
            raise UserError("there is no such train setting", where=f"train.{key}", fix=did_you_mean(key, known))
        try:
            settings = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(settings), {key: value}))  # type: ignore[assignment]
        except OmegaConfBaseException as error:
            raise UserError(str(error).splitlines()[0], where=f"train.{key}") from error
    return settings
