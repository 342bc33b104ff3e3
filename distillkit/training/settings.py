"""Check train settings by their keys, before anything is loaded."""

from __future__ import annotations

import os
from importlib.util import find_spec

from distillkit.errors import UserError
from distillkit.models.lora import check_installed
from distillkit.models.names import as_list
from distillkit.schema import Engine, LaunchSettings, LoraSettings, Optimizer, Precision, TrainSettings


def check_settings(settings: TrainSettings) -> None:
    """Refuse values that cannot work."""
    positive = ("batch_size", "learning_rate", "epochs", "log_every", "evaluate_batch_size", "epsilon")
    for key in (*positive, "max_nonfinite_steps"):
        _require(getattr(settings, key) > 0, key, "must be above 0", getattr(settings, key))
    optional = ("micro_batch_size", "max_steps", "max_grad_norm", "evaluate_every", "checkpoint_every")
    for key in (*optional, "unfreeze", "head_learning_rate", "patience"):
        value = getattr(settings, key)
        _require(value is None or value > 0, key, "must be above 0 or null", value)
    for key in ("weight_decay", "warmup", "final_learning_rate", "min_delta"):
        _require(getattr(settings, key) >= 0, key, "must not be negative", getattr(settings, key))
    betas = settings.betas
    _require(len(betas) == 2 and all(0 <= beta < 1 for beta in betas), "betas", "must be two numbers in [0, 1)", betas)
    _require(settings.keep_checkpoints >= 1, "keep_checkpoints", "must be at least 1", settings.keep_checkpoints)
    _require(0 < settings.layer_decay <= 1, "layer_decay", "must be in (0, 1]", settings.layer_decay)
    number_or_names = "must be a number of layers from 0, name patterns, or a list of these"
    _require(_freezes(settings.freeze), "freeze", number_or_names, repr(settings.freeze))
    if settings.optimizer is Optimizer.adamw_8bit and find_spec("bitsandbytes") is None:
        fix = "pip install 'distillkit[bitsandbytes]'"
        raise UserError("adamw_8bit needs bitsandbytes", where="train.optimizer", fix=fix)
    _check_lora(settings.lora)


def check_engine(launch: LaunchSettings, settings: TrainSettings) -> None:
    """Refuse settings that do not go together with a student that the processes share."""
    if launch.max_restarts < 0:
        raise UserError(f"must not be negative, got {launch.max_restarts}", where="launch.max_restarts")
    for name in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        if os.environ.get(f"ACCELERATE_USE_{name}", "").lower() == "true":
            fix = "leave it out of the accelerate config, and shard with launch.engine=fsdp"
            raise UserError(f"Accelerate's {name} is asked for, and not used here", where="launch.config_file", fix=fix)
    if launch.engine is not Engine.fsdp:
        return
    for key, asked in (
        ("unfreeze", settings.unfreeze is not None),
        ("auto_batch", settings.auto_batch),
        ("precision", settings.precision is Precision.fp16),
        ("optimizer", settings.optimizer is Optimizer.adamw_8bit),
    ):
        if asked:
            what = f"{getattr(settings, key)} does not work with launch.engine=fsdp"
            raise UserError(what, where=f"train.{key}", fix="use launch.engine=ddp")


def _check_lora(lora: LoraSettings) -> None:
    _require(lora.rank is None or lora.rank > 0, "lora.rank", "must be above 0 or null", lora.rank)
    _require(lora.alpha > 0, "lora.alpha", "must be above 0", lora.alpha)
    _require(0 <= lora.dropout < 1, "lora.dropout", "must be in [0, 1)", lora.dropout)
    named = lora.targets is None or all(isinstance(name, str) and name for name in as_list(lora.targets) or [None])
    _require(named, "lora.targets", "must be name patterns or null", repr(lora.targets))
    if lora.rank is not None:
        check_installed()


def _freezes(value: object) -> bool:
    """Tell whether a value can say what is frozen."""
    if isinstance(value, list):
        return bool(value) and all(not isinstance(part, list) and part is not None and _freezes(part) for part in value)
    if isinstance(value, bool) or not isinstance(value, int | str | None):
        return False
    return value >= 0 if isinstance(value, int) else value != ""


def _require(fine: bool, key: str, problem: str, value: object) -> None:
    if not fine:
        raise UserError(f"{problem}, got {value}", where=f"train.{key}")
