"""How a student is trained: which of its parameters, from which step on and how fast, and with LoRA beside them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import Tensor, nn

from distillkit.errors import UserError
from distillkit.models.levels import Levels, find_levels, head_names
from distillkit.models.live import LiveModel
from distillkit.models.lora import Adapters, adaptable, trained_beside
from distillkit.schema import TrainSettings
from distillkit.signals import Batch
from distillkit.training.freezing import FREEZE, UNFREEZE, frozen_names, numbers, thaw_steps

HEAD_RATE = "train.head_learning_rate"


@dataclass(frozen=True)
class TuningPlan:
    """What the settings mean for one student.

    Attributes:
        levels: Of the student; None where nothing goes by them.
        trained: The parameters of its own that are ever trained.
        adapted: The linear maps that get an adapter.
        head: Those of `trained` that have the head's learning rate.
    """

    levels: Levels | None
    trained: set[str]
    adapted: list[str]
    head: set[str]

    def size(self, model: Any, settings: TrainSettings) -> int:
        """Count the parameters that are ever trained."""
        own = sum(model.get_parameter(name).numel() for name in self.trained)
        return own + sum((settings.lora.rank or 0) * sum(model.get_submodule(m).weight.shape) for m in self.adapted)


def plan_tuning(student: LiveModel, settings: TrainSettings, row: Batch, steps: int) -> TuningPlan:
    """Refuse settings that do not fit a student; nothing is changed.

    Args:
        student: To be trained.
        settings: Of the run.
        row: A batch of any size, to see in which order the student runs.
        steps: Of the whole run.
    """
    model, levels = student.model, None
    for key, asked in (
        (FREEZE, numbers(settings)),
        (UNFREEZE, settings.unfreeze),
        ("train.layer_decay", settings.layer_decay < 1),
    ):
        if asked and levels is None:
            levels = find_levels(student, row, key)
    frozen = frozen_names(model, settings, levels)
    adapted: list[str] = []
    candidates = {name for name, _ in model.named_parameters()}
    if settings.lora.rank is not None:
        adapted = adaptable(model, settings.lora.targets, frozen)
        candidates = trained_beside(model)
    trained = candidates - frozen
    if not trained and not adapted:
        raise UserError("nothing is left to train", where=FREEZE, fix="freeze less")
    head = set()
    if settings.head_learning_rate is not None:
        head = head_names(model) & trained
        if not head:
            tied = "it has none of its own" if not head_names(model) else "it is frozen"
            raise UserError(f"the student's head is not trained: {tied}", where=HEAD_RATE, fix="set it to null")
    if levels is not None and settings.unfreeze is not None:
        thaw_steps(trained, settings, levels, steps)
    return TuningPlan(levels, trained, adapted, head)


class Tuning:
    """Freeze what is not trained and add the adapters; `finish` undoes both.

    Every parameter that is ever trained requires a gradient until the first `advance`, so that a wrapper sees it.

    Args:
        student: Changed in place.
        settings: Of the run.
        row: As in `plan_tuning`.
        steps: Of the whole run.

    Attributes:
        scales: What the learning rate of the parameters is multiplied by.
        size: The number of parameters that are ever trained.
    """

    def __init__(self, student: LiveModel, settings: TrainSettings, row: Batch, steps: int) -> None:
        plan = plan_tuning(student, settings, row, steps)
        self.size = plan.size(student.model, settings)
        self.student = student
        self.adapters: Adapters | None = None
        trained = plan.trained
        if plan.adapted:
            self.adapters = Adapters(student.model, plan.adapted, settings.lora)
            trained = trained | self.adapters.names
        self._trained: dict[str, nn.Parameter] = {}
        self.scales: dict[nn.Parameter, float] = {}
        for name, parameter in student.model.named_parameters():
            parameter.requires_grad_(name in trained)
            if name in trained:
                self._trained[name] = parameter
                self.scales[parameter] = _scale(name, plan, settings)
        self._key = FREEZE if settings.unfreeze is None else UNFREEZE
        self._opens: dict[str, int] = {}
        if plan.levels is not None and settings.unfreeze is not None:
            self._opens = thaw_steps(self._trained, settings, plan.levels, steps)

    def prepare(self, accelerator: Accelerator) -> None:
        """Let a wrapper of several processes expect parameters without a gradient, if any thaw later."""
        if self._opens:
            accelerator.ddp_handler = accelerator.ddp_handler or DistributedDataParallelKwargs()
            accelerator.ddp_handler.find_unused_parameters = True

    def advance(self, step: int) -> None:
        """Train in a step (counted from 0) what is to be trained in it; the rest costs no backward pass."""
        for name, opens in self._opens.items():
            self._trained[name].requires_grad_(step >= opens)

    def check(self, loss: Tensor) -> None:
        """Refuse a loss that has nothing to train, such as one on the outputs of frozen layers."""
        if not loss.requires_grad:
            raise UserError("the loss depends on nothing that is trained", where=self._key, fix="freeze less")

    def finish(self, adapter: Path | None = None) -> None:
        """Merge the adapters into the weights, and let everything be trained again.

        Args:
            adapter: Where to write them first, for peft; None: nowhere.
        """
        if self.adapters is not None:
            if adapter is not None:
                self.adapters.save(adapter)
            self.adapters.merge()
        self.student.requires_grad_(True)


def _scale(name: str, plan: TuningPlan, settings: TrainSettings) -> float:
    if name in plan.head and settings.head_learning_rate is not None:
        return settings.head_learning_rate / settings.learning_rate
    return 1.0 if plan.levels is None else settings.layer_decay ** (plan.levels.top - plan.levels.of(name))
