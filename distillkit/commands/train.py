"""`distillkit train`: fine-tune a model on its own, or distil a teacher into it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from distillkit.commands.folder import Standing, claim, standing
from distillkit.commands.parts import (
    announce,
    finish,
    make_accelerator,
    start_trackers,
)
from distillkit.commands.training_parts import Loaded, Plan, load, make_plan
from distillkit.data.encode_stream import EncodedStream
from distillkit.evaluation.evaluate import evaluate
from distillkit.freeze import digest
from distillkit.models.live import LiveModel
from distillkit.reporting.card import made, model_card
from distillkit.reporting.console import notice
from distillkit.reporting.environment import environment
from distillkit.reporting.files import markdown_table, read_report, write_report
from distillkit.schema import Config, Engine, Precision, TrainSettings
from distillkit.training.checkpoint import BEST, check_resumable, newest_checkpoint, step_of
from distillkit.training.interruption import restarted
from distillkit.training.loop import fit
from distillkit.training.records import Records
from distillkit.training.run import FitResult, Run
from distillkit.training.stopping import check_patience
from distillkit.training.tuning import plan_tuning


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
    loaded = load(plan, config.train, accelerator)
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
