"""Training from a store: what is checked before any weight is loaded, and rows that bring their answers along."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from distillkit.commands.parts import Data
from distillkit.data.encode import Encoded
from distillkit.losses.base import LogitLoss
from distillkit.losses.objective import Objective
from distillkit.losses.shared import TaughtLoss
from distillkit.losses.vectors import VectorLoss
from distillkit.models.cached import CachedTeacher
from distillkit.models.live import LiveModel
from distillkit.models.load import load_processor
from distillkit.models.students import Pretrained, Student
from distillkit.models.teachers import LiveTeacher
from distillkit.reporting.console import notice
from distillkit.tasks.base import Task


def check_store(teacher: CachedTeacher, objective: Objective, data: Data, processor: Any) -> Data:
    """Refuse a store that does not hold what the loss compares with, or not for these rows and this student.

    Whether the rows are encoded in the same way is seen when they are (`answered`).

    Args:
        teacher: Fits the task.
        objective: Bound.
        data: With the training rows.
        processor: The student's tokenizer; None where the student takes the teacher's, or makes one.

    Returns:
        The data, with the teacher's class names if its rows have no labels.
    """
    poolings: dict[str, set[str | None]] = {}
    for loss in objective.feature_terms.values():
        for name in loss.teacher_features:
            poolings.setdefault(name, set()).add(loss.pooling if isinstance(loss, VectorLoss) else None)
    teacher.check_wanted(objective.wanted_of_teacher, poolings)
    teacher.check_rows(data.rows, data.labels)
    if processor is not None:
        teacher.check_vocabulary(processor)
    return data if data.labels is not None else replace(data, labels=teacher.labels)


def processor_of(student: Student, task: Task) -> Any:
    """Load the tokenizer of a pretrained student, ahead of its weights."""
    return load_processor(student.path, task, "student.path") if isinstance(student, Pretrained) else None


def load_origin(teacher: CachedTeacher, task: Task, data: Data) -> LiveModel:
    """Load the model behind the (first) store, for a student that is made of its layers."""
    path, dtype = teacher.origin
    return LiveTeacher(path, dtype).load(task, data.labels)


def answered(teacher: CachedTeacher, rows: Encoded, objective: Objective, task: Task) -> Encoded:
    """Let the training rows bring what the store holds about them."""
    teacher.check_encoded(rows)
    if task.random:
        notice("the masks are those that the teacher saw, the same in every epoch")
    draws = all(_linear(loss, teacher.temperature) for loss in objective.losses if isinstance(loss, LogitLoss))
    return replace(rows, said=teacher.answers(objective.wanted_of_teacher, task, draws))


def _linear(loss: LogitLoss, temperature: float) -> bool:
    """Tell whether a loss is linear in the teacher's probabilities at a temperature, or does not ask the teacher."""
    if not loss.needs_teacher:
        return True
    return isinstance(loss, TaughtLoss) and loss.linear and not loss.scheduled and loss.temperature == temperature
