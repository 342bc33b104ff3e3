"""Training from a store: what is checked before any weight is loaded, and rows that bring their answers along."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from distillkit.commands.parts import Data
from distillkit.data.encode import Encoded
from distillkit.data.encoder import Encoder
from distillkit.losses.base import LogitLoss
from distillkit.losses.objective import Objective
from distillkit.losses.vectors import VectorLoss
from distillkit.models.cached import CachedTeacher
from distillkit.models.live import LiveModel
from distillkit.models.load import load_processor
from distillkit.models.students import FromConfig, Pretrained, Student
from distillkit.models.teachers import LiveTeacher, RecordedTeacher
from distillkit.reporting.console import notice
from distillkit.tasks.base import Task


def check_store(teacher: CachedTeacher, objective: Objective, data: Data, task: Task, processor: Any) -> Data:
    """Refuse a store that does not hold what the loss compares with, or not for these rows and this student.

    Whether the rows are encoded in the same way is seen by some of them, and by all when they are (`answered`).

    Args:
        teacher: Fits the task.
        objective: Bound.
        data: With the training rows.
        task: Of the student.
        processor: The student's tokenizer; None where the student makes one of the rows.

    Returns:
        The data, with the teacher's class names if its rows have no labels.
    """
    poolings: dict[str, set[str | None]] = {}
    for loss in objective.feature_terms.values():
        for name in loss.teacher_features:
            poolings.setdefault(name, set()).add(loss.pooling if isinstance(loss, VectorLoss) else None)
    teacher.check_wanted(objective.wanted_of_teacher, poolings)
    for key, term in zip(objective.names, objective.losses, strict=True):
        if isinstance(term, LogitLoss):
            teacher.check_loss(term, f"loss.terms.{key}")
    teacher.check_rows(data.rows, data.labels)
    data = data if data.labels is not None else replace(data, labels=teacher.labels)
    if processor is not None:
        teacher.check_vocabulary(processor)
        teacher.check_examples(data.rows, Encoder.of(task, processor, data.labels))
    return data


def processor_of(student: Student, teacher: CachedTeacher, task: Task) -> Any:
    """Load a student's tokenizer ahead of any weights, or that of the teacher, which it takes; None if it makes one."""
    if isinstance(student, Pretrained):
        path, key = student.path, "student.path"
    elif isinstance(student, FromConfig) and student.tokenizer is not None:
        if not isinstance(student.tokenizer, str):
            return None
        path, key = student.tokenizer, "student.tokenizer"
    else:
        path, key = teacher.origin[0], "teacher.path"
    processor = load_processor(path, task, key)
    task.adapt(processor)
    return processor


def load_origin(teacher: CachedTeacher | RecordedTeacher, task: Task, data: Data) -> LiveModel:
    """Load the model whose answers were kept (the first one's), for a student that is made of its layers."""
    path, dtype = teacher.origin
    return LiveTeacher(path, dtype).load(task, data.labels)


def answered(teacher: CachedTeacher, rows: Encoded, objective: Objective, task: Task) -> Encoded:
    """Let the training rows bring what the store holds about them."""
    teacher.check_encoded(rows)
    if task.random:
        notice("the masks are those that the teacher saw, the same in every epoch")
    return replace(rows, said=teacher.answers(objective.wanted_of_teacher, task))
