"""What a training run works with, and what it came to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator

from distillkit.data.plans import TrainingRows
from distillkit.losses.objective import Objective
from distillkit.models.live import LiveModel
from distillkit.schema import TrainSettings
from distillkit.signals import Model
from distillkit.training.records import Records


@dataclass
class FitResult:
    """What a training run came to."""

    steps: int
    best_step: int | None
    best_value: float | None
    best_metric: str
    seconds: float
    items: float
    stopped_early: bool
    trained_parameters: int
    skipped_steps: int


@dataclass
class Run:
    """Everything that one call of `fit` works with."""

    student: LiveModel
    teacher: Model | None
    objective: Objective
    data: TrainingRows
    settings: TrainSettings
    accelerator: Accelerator
    records: Records
    folder: Path
    digest: str
    title: str = "train"
    evaluate: Callable[[LiveModel], dict[str, float]] | None = None
    best_metric: str = "loss"
    before_step: Callable[[], None] | None = None  # sees the gradients
    after_step: Callable[[], None] | None = None
    resume_from: Path | None = None
    adapter: Path | None = None  # where to write LoRA's adapters before they are merged
    sharded: bool = False  # the processes share the student's weights (FSDP 2)
    reshard: bool = True  # between a layer's forward and backward pass, if so
