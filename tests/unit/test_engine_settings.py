"""What does not go together with a student that the processes share is refused by its key."""

from __future__ import annotations

import pytest

from distillkit.errors import UserError
from distillkit.schema import Engine, LaunchSettings, Optimizer, Precision, TrainSettings
from distillkit.training.settings import check_engine

SHARED = LaunchSettings(engine=Engine.fsdp)


@pytest.mark.parametrize(
    "asked",
    [{"unfreeze": 0.5}, {"auto_batch": True}, {"optimizer": Optimizer.adamw_8bit}, {"precision": Precision.fp16}],
    ids=lambda asked: min(asked),
)
def test_what_does_not_work_with_shares(asked):
    settings = TrainSettings(**asked)
    check_engine(LaunchSettings(), settings)
    with pytest.raises(UserError, match=rf"^train\.{min(asked)}: \S+ does not work with launch\.engine=fsdp; "):
        check_engine(SHARED, settings)


def test_restarts_are_counted_from_zero():
    check_engine(SHARED, TrainSettings())
    with pytest.raises(UserError, match=r"^launch\.max_restarts: must not be negative, got -1"):
        check_engine(LaunchSettings(max_restarts=-1), TrainSettings())


@pytest.mark.parametrize("name", ["FSDP", "DEEPSPEED", "MEGATRON_LM"])
def test_engines_of_an_accelerate_config_are_not_taken_for_used(monkeypatch, name):
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    with pytest.raises(UserError, match=rf"^launch\.config_file: Accelerate's {name} is asked for"):
        check_engine(LaunchSettings(), TrainSettings())
