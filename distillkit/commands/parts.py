"""What the commands share: building the parts of a config, the accelerator, loading rows and models."""

from __future__ import annotations

import atexit
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import DistributedDataParallelKwargs, ProjectConfiguration, set_seed

from distillkit.build import build
from distillkit.data.checks import check_columns
from distillkit.data.labels import label_names
from distillkit.data.plans import TrainingRows
from distillkit.data.rows import Rows, Source
from distillkit.errors import UserError
from distillkit.features import ModelShape
from distillkit.generation.base import Generator
from distillkit.losses.base import LogitLoss
from distillkit.losses.objective import Objective
from distillkit.models.anatomy import shape_of
from distillkit.models.cached import CachedTeacher
from distillkit.models.capture import check_features
from distillkit.models.live import LiveModel
from distillkit.models.load import load_config, load_live
from distillkit.models.onnx import OnnxModel, is_onnx
from distillkit.models.teachers import FrozenModel, LiveTeacher, Teacher
from distillkit.reporting.console import heading, notice
from distillkit.schema import Config
from distillkit.signals import Model
from distillkit.tasks.base import Task

PRESETS = {  # kind of outputs → the loss without and with a teacher
    "classes": ("hard", "kd"),
    "labels": ("multi_label", "multi_label_kd"),
    "scores": ("regression", "regression_kd"),
}


def build_required(node: Any, key: str) -> Any:
    """Build a node that the command cannot do without."""
    part = build(node, key)
    if part is None:
        raise UserError(f"no {key} is chosen", where=key, fix=f"choose one: {key}=NAME")
    return part


def make_accelerator(config: Config, objective: Objective | None = None) -> Accelerator:
    """Start (or join) the processes of this run, with its precision, trackers and seed; quieten the libraries.

    An objective that does not look at logits leaves the student's last weights without a gradient.
    """
    partly = objective is not None and not objective.wanted_of_student.logits
    datasets.disable_progress_bars()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(),
        mixed_precision=config.train.precision.value,
        log_with=config.tracker.log_with or None,
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=partly)],
        project_config=ProjectConfiguration(project_dir=config.output_dir, logging_dir=f"{config.output_dir}/trackers"),
    )
    set_seed(config.train.seed)
    return accelerator


def announce(config: Config, command: str, accelerator: Accelerator) -> None:
    """Print the title of a command, unless it is a stage, which `run` has announced."""
    if accelerator.is_main_process and config.root_dir == config.output_dir:
        heading(f"{command} {config.name}")


def finish(accelerator: Accelerator) -> None:
    """Wait for everyone and close the trackers.

    The processes stay together for the next stage or job: a group that parted does not reliably meet again.
    """
    accelerator.wait_for_everyone()
    for tracker in accelerator.trackers:
        tracker.finish()
    atexit.register(accelerator.state.destroy_process_group)


@dataclass(frozen=True)
class Data:
    """Loaded rows, checked against the task.

    Attributes:
        rows: The dataset.
        labels: Class names in the order of their ids; None for tasks without classes and rows without labels.
    """

    rows: Rows
    labels: list[str] | None


def start_trackers(config: Config, accelerator: Accelerator) -> None:
    """Start the trackers that the config names."""
    if config.tracker.log_with:
        names = {"wandb": {"name": config.name}} if "wandb" in config.tracker.log_with else {}
        accelerator.init_trackers(config.tracker.project, init_kwargs=names)


def load_data(source: Source, task: Task, keep_teacher_logits: bool = False, reader: Generator | None = None) -> Data:
    """Read the rows and check that they have what is read of them.

    Args:
        source: Of the rows.
        task: What they are for.
        keep_teacher_logits: Whether the rows' recorded logits are the teacher; else they are left out.
        reader: What reads the columns; None for the task.
    """
    rows = source.load()
    for note in rows.notes:
        notice(note)
    rows = _only_if_recorded(rows) if keep_teacher_logits else rows.without("teacher_logits")
    check_columns(rows, reader or task)
    column = task.label_column or ""
    known = rows.labels is not None or any(column in split.column_names for split in rows.splits.values())
    return Data(rows, label_names(rows, column) if task.has_classes and known else None)


def _only_if_recorded(rows: Rows) -> Rows:
    train = rows.example("train")
    if "teacher_logits" not in train.column_names or all(row is None for row in train["teacher_logits"]):
        raise UserError(
            "the training rows carry no teacher_logits",
            where="dataset.columns.teacher_logits",
            fix="make them with distillkit generate-pseudo, or use teacher=live",
        )
    return rows


def require_labels(rows: Rows, split: str, task: Task, why: str) -> None:
    """Refuse a split without hard labels where they are needed."""
    table, column = rows.example(split), task.label_column
    if column is not None and (column not in table.column_names or all(label is None for label in table[column])):
        raise UserError(
            f"the {split} split has no labels, and {why} needs them",
            where=f"dataset.columns.{column}",
            fix="map the column that holds them",
        )


def load_teacher(
    teacher: Teacher, task: Task, data: Data, objective: Objective, device: torch.device
) -> tuple[Model, LiveModel | None]:
    """Load a teacher: what answers batches with what the objective wants, and the live model behind it if any."""
    if not isinstance(teacher, LiveTeacher):
        return teacher.load(task, data.labels), None
    wanted = objective.wanted_of_teacher
    live = teacher.load(task, data.labels, trained=wanted.logits).to(device)
    return FrozenModel(live, wanted), live


def check_teacher(objective: Objective, teacher: Teacher | None, where: str) -> None:
    """Refuse a teacher that cannot give what the objective compares with."""
    fix = "set teacher=live teacher.path=MODEL"
    if objective.needs_teacher and teacher is None:
        raise UserError("the loss compares with a teacher, and there is none", where=where, fix=f"{fix}, or loss=hard")
    for name in objective.feature_terms:
        if not isinstance(teacher, LiveTeacher | CachedTeacher):
            raise UserError("this teacher shows nothing but its logits", where=f"loss.terms.{name}", fix=fix)


def check_fit(objective: Objective, task: Task) -> None:
    """Refuse terms that compare outputs of another kind than the task's models give."""
    for name, loss in zip(objective.names, objective.losses, strict=True):
        if isinstance(loss, LogitLoss) and task.output_kind not in loss.fits:
            hard, soft = PRESETS[task.output_kind]
            kinds = " or ".join(sorted(loss.fits))
            raise UserError(
                f"{type(loss).__name__} compares {kinds}, and models for {task.name} give {task.output_kind}",
                where=f"loss.terms.{name}",
                fix=f"use loss={hard} or loss={soft}",
            )


def bind(objective: Objective, student: ModelShape | Callable[[Any], ModelShape], teacher: Teacher | None) -> None:
    """Fit an objective that looks inside the models to their shapes, which their configs tell before any weight."""
    if objective.feature_terms:
        assert teacher is not None
        config = teacher.config if isinstance(teacher, CachedTeacher) else load_config(teacher.path, "teacher.path")
        objective.bind(student(config) if callable(student) else student, shape_of(config))


@torch.no_grad()
def try_features(objective: Objective, student: LiveModel, teacher: Model | None, rows: TrainingRows) -> None:
    """Compare the models on one row, so that one that does not show what the loss looks at is refused at the start."""
    if not objective.feature_terms:
        return
    assert teacher is not None
    batch = rows.batch([0]).to(student.device)
    shown = student.eval()(batch, objective.wanted_of_student)
    check_features(shown.features, objective.wanted_of_student.features, student.model, "student")
    taught = teacher(batch)
    if isinstance(teacher, FrozenModel):
        check_features(taught.features, objective.wanted_of_teacher.features, teacher.live.model, "teacher")
    objective.to(student.device)(shown, taught, batch, objective.counts(batch))


def load_model(
    path: str, task: Task, key: str, labels: list[str] | None, device: torch.device
) -> LiveModel | OnnxModel:
    """Load any model folder or hub id for evaluation, in the precision that it was saved in."""
    if is_onnx(path):
        task.prepare(load_config(path, key), labels, trained=True, key=key)  # refuses other classes than the data's
        return OnnxModel.load(Path(path).expanduser(), task)
    return load_live(path, task, key, labels, dtype="auto").to(device).eval()


def check_objective(objective: Any) -> Objective:
    """Refuse a loss node that is no objective."""
    if not isinstance(objective, Objective):
        raise UserError(f"{type(objective).__name__} is not an objective", where="loss._target_")
    return objective
