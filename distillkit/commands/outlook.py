"""What each training of a recipe would need on this machine: its parts are outlined, and one step is dry-run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import Any

import torch

from distillkit.commands.parts import Data, load_data
from distillkit.commands.training_parts import Plan, make_plan
from distillkit.data.batches import planned_steps
from distillkit.data.encode import Encoded, encode
from distillkit.diagnosis.estimate import Estimate, Training, estimate
from distillkit.diagnosis.outline import Outlines
from distillkit.errors import UserError
from distillkit.freeze import StageJob
from distillkit.models.anatomy import shape_of
from distillkit.models.cached import CachedTeacher
from distillkit.models.live import LiveModel
from distillkit.models.teachers import LiveTeacher, RecordedTeacher
from distillkit.reporting.console import console
from distillkit.schema import Config, TrainSettings

SAMPLE = 64  # rows that are encoded, or a few micro-batches if that is more
MICRO_BATCHES = 4


@dataclass(frozen=True)
class Outlook:
    """What one training would need.

    Attributes:
        stage: Its name.
        estimate: None if it reads what an earlier stage has yet to write.
        problem: What it lacks then.
    """

    stage: str
    estimate: Estimate | None
    problem: str | None = None


def estimate_stages(jobs: Mapping[str, StageJob], device: torch.device) -> list[Outlook]:
    """Estimate every training in order; models that an earlier one will write are known by their outline.

    Raises:
        UserError: A stage cannot work.
    """
    outlines, found = Outlines(device), []
    loaded: dict[str, Data] = {}  # stages often read the same rows
    for name, job in jobs.items():
        try:
            with _silence():
                found.append(Outlook(name, _estimate(job.config, outlines, loaded)))
        except UserError as error:
            if not job.config.upstream:
                raise UserError(str(error), where=f"stages.{name}" if len(jobs) > 1 else None) from error
            found.append(Outlook(name, None, str(error)))
    return found


def _estimate(config: Config, outlines: Outlines, loaded: dict[str, Data]) -> Estimate:
    plan = make_plan(config)
    recorded = isinstance(plan.teacher, RecordedTeacher)
    key = repr((config.task, config.dataset, recorded))
    if key not in loaded:
        loaded[key] = load_data(plan.source, plan.task, keep_teacher_logits=recorded)
    data = loaded[key]
    teacher = _teacher(plan, data, outlines)
    if data.labels is None and plan.task.has_classes and teacher is not None:
        data = replace(data, labels=teacher.labels)
    student = outlines.student(plan.student, plan.task, data.labels, data.rows, teacher)
    if plan.objective.feature_terms:
        taught = plan.teacher.config if isinstance(plan.teacher, CachedTeacher) else _config(teacher)
        plan.objective.bind(shape_of(student.model.config), shape_of(taught))
    sample, rows = _sample(data, plan, student, config.train)
    outlines.made[str(Path(config.output_dir) / "model")] = student
    asked = teacher if plan.objective.needs_teacher and isinstance(plan.teacher, LiveTeacher) else None
    steps = config.train.max_steps if rows is None else planned_steps(rows, config.train)
    training = Training(student, asked, plan.objective, sample, steps, config.train, config.launch.num_processes)
    return estimate(training, outlines)


def _teacher(plan: Plan, data: Data, outlines: Outlines) -> LiveModel | None:
    """Outline the teacher, if it is asked or the student is made of it."""
    teacher = plan.teacher
    if isinstance(teacher, CachedTeacher | RecordedTeacher) and plan.student.needs_teacher:
        return outlines.teacher(LiveTeacher(*teacher.origin), plan.task, data.labels)
    return outlines.teacher(teacher, plan.task, data.labels) if isinstance(teacher, LiveTeacher) else None


def _config(live: LiveModel | None) -> Any:
    assert live is not None  # a loss that looks inside the models was refused without a teacher
    return live.model.config


def _sample(data: Data, plan: Plan, student: LiveModel, settings: TrainSettings) -> tuple[Encoded, int | None]:
    """Encode some training rows; return them, and how many encoded rows all would give, if that can be told."""
    table = data.rows.example("train")
    micro = settings.micro_batch_size or settings.batch_size
    wanted = min(len(table), max(SAMPLE, MICRO_BATCHES * micro))
    few = table.shuffle(seed=0).select(range(wanted))
    handling = replace(data.rows.handling, cache=False, num_workers=0)
    rows = replace(data.rows, splits={"train": few}, stream=None, handling=handling)
    sample = encode(rows, "train", plan.task, student.tokenizer, data.labels)
    sample = replace(sample, packed=plan.task.packing)
    known = data.rows.stream is None
    return sample, ceil(len(sample) * len(table) / wanted) if known else None


@contextmanager
def _silence() -> Iterator[None]:
    """Keep what loading says off the screen."""
    before, console.quiet = console.quiet, True
    try:
        yield
    finally:
        console.quiet = before
