"""The parts of a training: built and checked against each other first, then loaded."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from accelerate import Accelerator

from distillkit.build import build
from distillkit.commands.cached import answered, check_store, load_origin, processor_of
from distillkit.commands.packing import packed
from distillkit.commands.parts import (
    Data,
    bind,
    build_required,
    check_fit,
    check_objective,
    check_teacher,
    load_data,
    load_teacher,
    require_labels,
    try_features,
)
from distillkit.data.encode import Encoded, encode
from distillkit.data.encode_stream import check_stream, encode_training
from distillkit.data.plans import TrainingRows
from distillkit.data.rows import Source
from distillkit.errors import UserError, did_you_mean
from distillkit.losses.objective import Objective
from distillkit.models.cached import CachedTeacher
from distillkit.models.live import LiveModel
from distillkit.models.students import Student
from distillkit.models.teachers import FrozenModel, LiveTeacher, RecordedTeacher, Teacher
from distillkit.models.tokenizers import check_same_vocabulary
from distillkit.schema import Config, TrainSettings
from distillkit.signals import Model
from distillkit.tasks.base import Task
from distillkit.training.settings import check_engine, check_settings
from distillkit.training.sharding import shard_teacher


@dataclass(frozen=True)
class Plan:
    """The parts of a training run, built but not loaded."""

    task: Task
    source: Source
    teacher: Teacher | None
    student: Student
    objective: Objective

    @property
    def asks_teacher(self) -> bool:
        """Whether the teacher has to be loaded: a loss compares with it, or the student is made from it."""
        return self.teacher is not None and (self.objective.needs_teacher or self.student.needs_teacher)


@dataclass(frozen=True)
class Loaded:
    """The parts of a training run, loaded; `validation` and `teacher` are None where there are none."""

    data: Data
    student: LiveModel
    teacher: Model | None
    train: TrainingRows
    validation: Encoded | None


def make_plan(config: Config) -> Plan:
    """Build the parts and refuse combinations that cannot work, before anything is loaded."""
    check_settings(config.train)
    check_engine(config.launch, config.train)
    plan = Plan(
        task=build_required(config.task, "task"),
        source=build_required(config.dataset, "dataset"),
        teacher=build(config.teacher, "teacher"),
        student=build_required(config.student, "student"),
        objective=check_objective(build_required(config.loss, "loss")),
    )
    best = config.train.best_metric
    if best is not None and best not in plan.task.quick().metric_names:
        known = list(plan.task.quick().metric_names)
        late = best in plan.task.metric_names
        what = (
            f"{plan.task.name} measures '{best}' at the end only"
            if late
            else f"{plan.task.name} has no metric '{best}'"
        )
        fix = f"choose {', '.join(known)}" if late else did_you_mean(best, known)
        raise UserError(what, where="train.best_metric", fix=fix)
    check_fit(plan.objective, plan.task)
    check_teacher(plan.objective, plan.teacher, "loss")
    if isinstance(plan.teacher, RecordedTeacher) or (isinstance(plan.teacher, CachedTeacher) and plan.asks_teacher):
        plan.teacher.check(plan.task)
    unnamed = isinstance(plan.teacher, RecordedTeacher) and not plan.teacher.named
    if plan.student.needs_teacher and (plan.teacher is None or unnamed):
        fix = "set teacher.path=MODEL" if plan.teacher else "set teacher=live teacher.path=MODEL"
        raise UserError("the student is made from a teacher, and there is none", where="student", fix=fix)
    return plan


def load(plan: Plan, settings: TrainSettings, accelerator: Accelerator) -> Loaded:
    """Load data and models, and refuse what does not fit together."""
    data, device = _load_rows(plan, settings), accelerator.device
    bind(plan.objective, plan.student.shape, plan.teacher)
    teacher, live = None, None
    cached = plan.teacher if isinstance(plan.teacher, CachedTeacher) and plan.asks_teacher else None
    if cached is not None:
        processor = processor_of(plan.student, cached, plan.task)
        data = check_store(cached, plan.objective, data, plan.task, processor)
    if plan.teacher is not None and plan.asks_teacher:
        teacher, live = load_teacher(plan.teacher, plan.task, data, plan.objective, _place(plan.teacher, accelerator))
    if plan.student.needs_teacher and isinstance(plan.teacher, RecordedTeacher | CachedTeacher):
        live = load_origin(plan.teacher, plan.task, data)
    if plan.objective.needs_labels:
        require_labels(data.rows, "train", plan.task, "the loss")
    if data.labels is None and plan.task.has_classes:
        data = _labelled_by(live, data)
    student = plan.student.build(plan.task, data.labels, data.rows, live)
    if live is not None:
        check_same_vocabulary(live.tokenizer, student.tokenizer)
    train: TrainingRows = encode_training(data.rows, plan.task, student.tokenizer, data.labels)
    if cached is not None:
        assert isinstance(train, Encoded)  # the store was compared with the whole split
        train = answered(cached, train, plan.objective, plan.task)
    validation = None
    if "validation" in data.rows.splits and plan.objective.wanted_of_student.logits:
        require_labels(data.rows, "validation", plan.task, "evaluation")
        validation = encode(data.rows, "validation", plan.task, student.tokenizer, data.labels)
    _share_out(teacher, plan.teacher, accelerator)
    try_features(plan.objective, student.to(device), teacher, train)
    if plan.task.packing:
        train = packed(train, plan.objective, student, teacher)
    return Loaded(data, student, teacher if plan.objective.needs_teacher else None, train, validation)


def _shares(teacher: Teacher | None, accelerator: Accelerator) -> bool:
    """Tell whether the processes share a teacher's weights."""
    return isinstance(teacher, LiveTeacher) and teacher.shard and accelerator.num_processes > 1


def _place(teacher: Teacher, accelerator: Accelerator) -> torch.device:
    """Return where a teacher is loaded to; one that is shared out reaches the device layer by layer."""
    return torch.device("cpu") if _shares(teacher, accelerator) else accelerator.device


def _share_out(loaded: Model | None, teacher: Teacher | None, accelerator: Accelerator) -> None:
    if isinstance(loaded, FrozenModel) and _shares(teacher, accelerator):
        shard_teacher(loaded, accelerator)


def _load_rows(plan: Plan, settings: TrainSettings) -> Data:
    data = load_data(plan.source, plan.task, keep_teacher_logits=isinstance(plan.teacher, RecordedTeacher))
    if data.rows.stream is not None:
        check_stream(data.rows.stream, settings)
    return data


def _labelled_by(teacher: LiveModel | None, data: Data) -> Data:
    """Take the class names of the teacher for rows that have no labels."""
    if teacher is None:
        raise UserError(
            "no row has a label, and no teacher knows the classes", where="dataset.labels", fix="list the class names"
        )
    return replace(data, labels=teacher.labels)
