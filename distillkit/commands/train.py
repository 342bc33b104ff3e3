"""`distillkit train`: fine-tune a model on its own, or distil a teacher into it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from distillkit.build import build
from distillkit.commands.cached import answered, check_store, load_origin, processor_of
from distillkit.commands.folder import Standing, claim, standing
from distillkit.commands.packing import packed
from distillkit.commands.parts import (
    Data,
    announce,
    bind,
    build_required,
    check_fit,
    check_objective,
    check_teacher,
    finish,
    load_data,
    load_teacher,
    make_accelerator,
    require_labels,
    start_trackers,
    try_features,
)
from distillkit.data.encode import Encoded, encode
from distillkit.data.encode_stream import EncodedStream, check_stream, encode_training
from distillkit.data.plans import TrainingRows
from distillkit.data.rows import Source
from distillkit.errors import UserError, did_you_mean
from distillkit.evaluation.evaluate import evaluate
from distillkit.freeze import digest
from distillkit.losses.objective import Objective
from distillkit.models.cached import CachedTeacher
from distillkit.models.live import LiveModel
from distillkit.models.students import Student
from distillkit.models.teachers import FrozenModel, LiveTeacher, RecordedTeacher, Teacher
from distillkit.models.tokenizers import check_same_vocabulary
from distillkit.reporting.card import made, model_card
from distillkit.reporting.console import notice
from distillkit.reporting.environment import environment
from distillkit.reporting.files import markdown_table, read_report, write_report
from distillkit.schema import Config, Engine, Precision, TrainSettings
from distillkit.signals import Model
from distillkit.tasks.base import Task
from distillkit.training.checkpoint import BEST, check_resumable, newest_checkpoint, step_of
from distillkit.training.interruption import restarted
from distillkit.training.loop import fit
from distillkit.training.records import Records
from distillkit.training.run import FitResult, Run
from distillkit.training.settings import check_engine, check_settings
from distillkit.training.sharding import shard_teacher
from distillkit.training.stopping import check_patience
from distillkit.training.tuning import plan_tuning


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
    accelerator = make_accelerator(config, plan.objective)
    accelerator.wait_for_everyone()
    announce(config, "train", accelerator)
    loaded = _load(plan, config.train, accelerator)
    trained = _check_tuning(config.train, loaded)
    if accelerator.is_main_process:
        claim(config, "train", state if resume_from is None else Standing.unfinished)
        _introduce(config, plan, loaded, trained)
    accelerator.wait_for_everyone()
    start_trackers(config, accelerator)
    result, metrics = _fit(config, plan, loaded, resume_from, accelerator)
    report = _report(config, plan, loaded, result, metrics)
    if isinstance(loaded.train, EncodedStream):
        notice(loaded.train.summary())
    if accelerator.is_main_process:
        loaded.student.save(folder / "model", model_card(report))
        write_report(folder, "train", report, _markdown(report))
        (folder / "checkpoints" / BEST).unlink(missing_ok=True)
        if result.stopped_early:
            notice(f"stopped early: no better {result.best_metric} in {config.train.patience} evaluations")
        notice(f"student: {folder / 'model'}")
    finish(accelerator)
    return report


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
    if plan.student.needs_teacher and not isinstance(plan.teacher, LiveTeacher | CachedTeacher):
        fix = "set teacher=live teacher.path=MODEL"
        raise UserError("the student is made from a teacher, and there is none", where="student", fix=fix)
    return plan


def _checkpoint(config: Config, state: Standing) -> Path | None:
    """Find the checkpoint to resume from; where a process died it is the newest, whatever the run began with."""
    resume = "auto" if restarted() else config.resume
    if resume not in ("auto", "never"):
        check_resumable(Path(resume), digest(config, "train"))
        return Path(resume)
    if resume == "never" or state is not Standing.unfinished:
        return None
    path, skipped = newest_checkpoint(Path(config.output_dir) / "checkpoints")
    for line in skipped:
        notice(line)
    if path is not None:
        check_resumable(path, digest(config, "train"))
        notice(f"resuming from {path}")
    return path


def _load(plan: Plan, settings: TrainSettings, accelerator: Accelerator) -> Loaded:
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
    if cached is not None and plan.student.needs_teacher:
        live = load_origin(cached, plan.task, data)
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


def _check_tuning(settings: TrainSettings, loaded: Loaded) -> int:
    """Refuse train settings that do not fit the student or the data; return how many parameters will be trained."""
    check_patience(settings, loaded.validation is not None)
    row = loaded.train.batch([0]).to(loaded.student.device)
    tuning = plan_tuning(loaded.student, settings, row, loaded.train.plan(settings).steps)
    return tuning.size(loaded.student.model, settings)


def _introduce(config: Config, plan: Plan, loaded: Loaded, trained: int) -> None:
    terms = ", ".join(f"{name}: {text}" for name, text in plan.objective.describe().items())
    notice(f"student {loaded.student.count_parameters() / 1e6:.2f} M parameters · {loaded.train.describe()}")
    if trained != loaded.student.count_parameters():
        notice(f"trained of it: {trained / 1e6:.2f} M parameters")
    teacher = plan.teacher.path if plan.teacher is not None and plan.objective.needs_teacher else "none"
    notice(f"teacher {teacher} · loss {terms}")
    if plan.teacher is not None and not plan.asks_teacher:
        notice("the teacher is not used: no term of the loss compares with it")
    if not plan.objective.wanted_of_student.logits:
        notice("the loss looks inside the models only: the student's head is left as it is, and not evaluated")
    if config.train.precision is Precision.fp16 and loaded.student.device.type == "cpu":
        notice("fp16 is slow on a CPU: bf16 is the faster half precision there")


def _fit(
    config: Config, plan: Plan, loaded: Loaded, resume_from: Path | None, accelerator: Accelerator
) -> tuple[FitResult, dict[str, float]]:
    """Train the student, and evaluate what came out."""
    folder, validation = Path(config.output_dir), loaded.validation

    def quality(model: LiveModel, autocast: bool = True) -> dict[str, float]:
        assert validation is not None
        size, task = config.train.evaluate_batch_size, plan.task.quick() if autocast else plan.task
        return evaluate(model, task, validation, size, accelerator, autocast, keep_answers=False).metrics

    records = Records(folder / "metrics.jsonl", accelerator)
    records.rewind(0 if resume_from is None else step_of(resume_from))
    run = Run(
        student=loaded.student,
        teacher=loaded.teacher,
        objective=plan.objective,
        data=loaded.train,
        settings=config.train,
        accelerator=accelerator,
        records=records,
        folder=folder / "checkpoints",
        digest=digest(config, "train"),
        evaluate=None if validation is None else quality,
        best_metric=config.train.best_metric or plan.task.quick().best_metric,
        resume_from=resume_from,
        adapter=folder / "adapter" if config.train.lora.keep_adapter else None,
        sharded=config.launch.engine is Engine.fsdp,
        reshard=config.launch.reshard_after_forward,
    )
    result = fit(run)
    return result, {} if validation is None else quality(loaded.student.eval(), autocast=False)


def _report(config: Config, plan: Plan, loaded: Loaded, result: FitResult, metrics: dict[str, float]) -> dict[str, Any]:
    student, path = loaded.student, None if plan.teacher is None else plan.teacher.path
    return {
        "digest": digest(config, "train"),
        "name": config.name,
        "task": plan.task.name,
        "dataset": loaded.data.rows.name,
        "teacher": path if plan.objective.needs_teacher else None,
        "made_from": path if plan.student.needs_teacher else None,
        "student": type(plan.student).__name__,
        "architecture": type(student.model).__name__,
        "loss": plan.objective.describe(),
        "parameters": student.count_parameters(),
        "seed": config.train.seed,
        "learning_rate": config.train.learning_rate,
        "batch_size": config.train.batch_size,
        "metrics": metrics,
        "environment": environment(),
        "data": {
            split: asdict(data.counts)
            for split, data in (("train", loaded.train), ("validation", loaded.validation))
            if data is not None
        },
        **asdict(result),
    }


def _markdown(report: dict[str, Any]) -> str:
    rows = [[name, f"{value:.4f}"] for name, value in report["metrics"].items()]
    table = markdown_table(["validation", "value"], rows) if rows else "There is no validation split."
    lines = [
        f"## Train: {report['name']}",
        f"{report['architecture']}, {report['parameters'] / 1e6:.2f} M parameters, {report['steps']} steps in "
        f"{report['seconds']:.0f} s. Teacher: {report['teacher'] or 'none'}. Student: {made(report)}. "
        f"Loss: {', '.join(f'{name} ({text})' for name, text in report['loss'].items())}.",
        table,
    ]
    return "\n\n".join(lines)
