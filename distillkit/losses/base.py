"""What every loss term is."""

from __future__ import annotations

from torch import Tensor, nn

from distillkit.errors import UserError
from distillkit.features import ModelShape
from distillkit.losses.schedule import Schedule
from distillkit.signals import Batch, Signal


class Loss(nn.Module):
    """A term of the objective: a sum over the items that it counts."""

    needs_teacher = True
    needs_labels = False

    def __init__(self) -> None:
        super().__init__()
        self._schedules: dict[str, Schedule] = {}

    @property
    def scheduled(self) -> bool:
        """Whether anything of it changes with the run's progress."""
        return bool(self._schedules)

    def mask(self, batch: Batch) -> Tensor:
        """Return the items that this term averages over: bool, of any shape."""
        raise NotImplementedError

    def temperature_from(self, value: float | Schedule) -> float:
        """Return the temperature to begin with; the attribute `temperature` follows a schedule from `advance` on."""
        if not isinstance(value, Schedule):
            return positive(value, "temperature")
        for bound in value.values():
            positive(bound, "temperature")
        self._schedules["temperature"] = value
        return value.at(0.0)

    def advance(self, progress: float) -> None:
        """Set what follows a schedule to its value after `progress`, a share of the run's steps."""
        for key, schedule in self._schedules.items():
            setattr(self, key, schedule.at(progress))


class LogitLoss(Loss):
    """A term that looks at logits item by item, so that it can run chunk by chunk over the items.

    `fits` are the kinds of outputs that it can compare (`Task.output_kind`).
    """

    fits: frozenset[str] = frozenset({"classes"})

    def per_item(self, student: Tensor, teacher: Tensor | None, labels: Tensor) -> Tensor:
        """Return the loss of each item.

        Args:
            student: float32 logits `[items, classes]`.
            teacher: float32 logits `[items, classes]`, or None if `needs_teacher` is False.
            labels: int64 `[items]`; `IGNORE` where there is none.

        Returns:
            nats `[items]`.
        """
        raise NotImplementedError


class FeatureLoss(Loss):
    """A term that compares what happens inside both models.

    `bind` says which features it needs, by their names (`distillkit.features`); only those are captured.
    """

    student_features: frozenset[str] = frozenset()
    teacher_features: frozenset[str] = frozenset()

    def bind(self, student: ModelShape, teacher: ModelShape) -> None:
        """Choose the features to compare, and make the projectors that fit the student's to the teacher's.

        Raises:
            UserError: If models of these shapes cannot be compared so; before any weight is loaded.
        """
        raise NotImplementedError

    def forward(self, student: Signal, teacher: Signal, batch: Batch) -> Tensor:
        """Return the SUM of the loss over the items that `mask` counts; the teacher gets no gradient."""
        raise NotImplementedError


def positive(value: float, key: str) -> float:
    """Refuse a hyper-parameter that is not above zero."""
    if not value > 0:
        raise UserError(f"must be above 0, got {value}", where=key)
    return value
