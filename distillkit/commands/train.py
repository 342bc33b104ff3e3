"""`distillkit train`: fine-tune a model on its own, or distil a teacher into it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from distillkit.build import build
from distillkit.commands.folder import Standing, claim, standing
from distillkit.commands.parts import (
    Data,
    build_required,
    check_objective,
    load_data,
    load_teacher,
    make_accelerator,
    require_labels,
)
from distillkit.data.encode import Encoded, encode
from distillkit.errors import UserError
from distillkit.evaluation.evaluate import evaluate
from distillkit.freeze import digest
from distillkit.losses.objective import Objective
from distillkit.models.live import LiveModel
from distillkit.models.students import Student
from distillkit.models.teachers import LiveTeacher, Teacher
from distillkit.models.tokenizers import check_same_vocabulary
from distillkit.reporting.card import model_card
from distillkit.reporting.console import heading, notice
from distillkit.reporting.files import markdown_table, read_report, write_report
from distillkit.schema import Config
from distillkit.tasks.base import Task
from distillkit.training.checkpoint import check_resumable, newest_checkpoint
from distillkit.training.loop import FitResult, Run, fit
from distillkit.training.optimizer import check_settings
from distillkit.training.records import Records


@dataclass(frozen=True)
class Plan:
    """The parts of a training run, built but not loaded."""

    task: Task
    source: Any
    teacher: Teacher | None
    student: Student
    objective: Objective


def main(config: Config) -> dict[str, Any]:
    """Train, and write the student to `<output_dir>/model`.

    Returns:
        What report.json keeps under "train".
    """
    plan = make_plan(config)
    state = standing(config, "train")
    folder = Path(config.output_dir)
    if state is Standing.finished:
        notice(f"already finished: {folder / 'model'}")
        return read_report(folder)["train"]
    resume_from = _checkpoint(config, state)
    accelerator = make_accelerator(config)
    accelerator.wait_for_everyone()
    heading(f"train {config.name}") if accelerator.is_main_process else None
    data = load_data(plan.source, plan.task)
    teacher, live = None, None
    if plan.teacher is not None and (plan.objective.needs_teacher or plan.student.needs_teacher):
        teacher, live = load_teacher(plan.teacher, plan.task, data, accelerator.device)
    if plan.objective.needs_labels:
        require_labels(data.rows, "train", plan.task, "the loss")
    if data.labels is None and plan.task.has_classes:
        data = _labelled_by(live, data)
    student = plan.student.build(plan.task, data.labels, data.rows, live)
    if live is not None:
        check_same_vocabulary(live.tokenizer, student.tokenizer)
    train = encode(data.rows, "train", plan.task, student.tokenizer, data.labels)
    validation = _validation(data, plan.task, student)
    best_metric = config.train.best_metric or plan.task.best_metric
    if accelerator.is_main_process:
        claim(config, "train", state)
    accelerator.wait_for_everyone()
    if config.tracker.log_with:
        accelerator.init_trackers(config.tracker.project, init_kwargs=_tracker_names(config))
    _announce(plan, student, train, accelerator)

    def quality(model: LiveModel) -> dict[str, float]:
        assert validation is not None
        size = config.train.evaluate_batch_size
        return evaluate(model, plan.task, validation, size, accelerator).metrics

    records = Records(folder / "metrics.jsonl", accelerator)
    records.rewind(_step(resume_from))
    result = fit(
        Run(
            student=student,
            teacher=teacher if plan.objective.needs_teacher else None,
            objective=plan.objective,
            data=train,
            settings=config.train,
            accelerator=accelerator,
            records=records,
            folder=folder / "checkpoints",
            digest=digest(config, "train"),
            evaluate=None if validation is None else quality,
            best_metric=best_metric,
            resume_from=resume_from,
        )
    )
    metrics = {} if validation is None else quality(student.eval())
    report = _report(config, plan, student, data, result, metrics)
    if accelerator.is_main_process:
        student.save(folder / "model", model_card(report))
        write_report(folder, "train", report, _markdown(report))
        notice(f"student: {folder / 'model'}")
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return report


def make_plan(config: Config) -> Plan:
    """Build the parts and refuse combinations that cannot work, before anything is loaded."""
    check_settings(config.train)
    plan = Plan(
        task=build_required(config.task, "task"),
        source=build_required(config.dataset, "dataset"),
        teacher=build(config.teacher, "teacher"),
        student=build_required(config.student, "student"),
        objective=check_objective(build_required(config.loss, "loss")),
    )
    fix = "set teacher=live teacher.path=MODEL"
    if plan.teacher is None and plan.objective.needs_teacher:
        raise UserError("the loss compares with a teacher, and there is none", where="loss", fix=f"{fix}, or loss=hard")
    if plan.student.needs_teacher and not isinstance(plan.teacher, LiveTeacher):
        raise UserError("the student is made from a teacher, and there is none", where="student", fix=fix)
    return plan


def _checkpoint(config: Config, state: Standing) -> Path | None:
    """Find the checkpoint to resume from."""
    if config.resume not in ("auto", "never"):
        check_resumable(Path(config.resume), digest(config, "train"))
        return Path(config.resume)
    if config.resume == "never" or state is not Standing.unfinished:
        return None
    path, skipped = newest_checkpoint(Path(config.output_dir) / "checkpoints")
    for line in skipped:
        notice(line)
    if path is not None:
        check_resumable(path, digest(config, "train"))
        notice(f"resuming from {path}")
    return path


def _step(checkpoint: Path | None) -> int:
    return 0 if checkpoint is None else int(checkpoint.name.removeprefix("step-"))


def _labelled_by(teacher: LiveModel | None, data: Data) -> Data:
    """Take the class names of the teacher for rows that have no labels."""
    if teacher is None:
        raise UserError(
            "no row has a label, and no teacher knows the classes", where="dataset.labels", fix="list the class names"
        )
    return replace(data, labels=teacher.labels)


def _validation(data: Data, task: Task, student: LiveModel) -> Encoded | None:
    if "validation" not in data.rows.splits:
        return None
    require_labels(data.rows, "validation", task, "evaluation")
    return encode(data.rows, "validation", task, student.tokenizer, data.labels)


def _tracker_names(config: Config) -> dict[str, Any]:
    return {"wandb": {"name": config.name}} if "wandb" in config.tracker.log_with else {}


def _announce(plan: Plan, student: LiveModel, train: Encoded, accelerator: Accelerator) -> None:
    if not accelerator.is_main_process:
        return
    terms = ", ".join(f"{name}: {text}" for name, text in plan.objective.describe().items())
    tokens = int(train.lengths.sum())
    notice(f"student {student.count_parameters() / 1e6:.2f} M parameters · {len(train):,} rows, {tokens:,} tokens")
    teacher = plan.teacher.path if plan.teacher is not None and plan.objective.needs_teacher else "none"
    notice(f"teacher {teacher} · loss {terms}")
    if plan.teacher is not None and not plan.objective.needs_teacher and not plan.student.needs_teacher:
        notice("the teacher is not used: no term of the loss compares with it")


def _report(
    config: Config, plan: Plan, student: LiveModel, data: Data, result: FitResult, metrics: dict[str, float]
) -> dict[str, Any]:
    used = plan.teacher is not None and (plan.objective.needs_teacher or plan.student.needs_teacher)
    return {
        "digest": digest(config, "train"),
        "name": config.name,
        "task": plan.task.name,
        "dataset": data.rows.name,
        "teacher": plan.teacher.path if used and plan.teacher is not None else None,
        "student": type(plan.student).__name__,
        "architecture": type(student.model).__name__,
        "loss": plan.objective.describe(),
        "parameters": student.count_parameters(),
        "seed": config.train.seed,
        "learning_rate": config.train.learning_rate,
        "batch_size": config.train.batch_size,
        "metrics": metrics,
        **asdict(result),
    }


def _markdown(report: dict[str, Any]) -> str:
    rows = [[name, f"{value:.4f}"] for name, value in report["metrics"].items()]
    table = markdown_table(["validation", "value"], rows) if rows else "There is no validation split."
    lines = [
        f"## Train: {report['name']}",
        f"{report['architecture']}, {report['parameters'] / 1e6:.2f} M parameters, {report['steps']} steps in "
        f"{report['seconds']:.0f} s. Teacher: {report['teacher'] or 'none'}. "
        f"Loss: {', '.join(f'{name} ({text})' for name, text in report['loss'].items())}.",
        table,
    ]
    return "\n\n".join(lines)
