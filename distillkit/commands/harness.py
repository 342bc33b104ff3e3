"""`distillkit eval evaluate=lm_eval`: models side by side on the tasks of EleutherAI's harness."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from transformers import AutoModelForCausalLM

from distillkit.commands.measures import find_baseline
from distillkit.commands.parts import load_model
from distillkit.errors import UserError
from distillkit.evaluation.harness import Scores, judge, require_harness, run_tasks, task_manager
from distillkit.evaluation.resampling import Resampled, resample
from distillkit.evaluation.size import size_on_disk
from distillkit.freeze import digest
from distillkit.models.live import LiveModel
from distillkit.reporting.comparison import EQUAL, kept_share
from distillkit.reporting.console import notice
from distillkit.reporting.environment import environment
from distillkit.reporting.files import plain
from distillkit.schema import Config, EvaluateSettings
from distillkit.tasks.base import Task


def check_harness(settings: EvaluateSettings, task: Task) -> None:
    """Refuse what the harness cannot do, before anything is loaded."""
    require_harness()
    if task.auto_class() is not AutoModelForCausalLM:
        raise UserError(f"lm-eval asks causal language models, not {task.name}", where="task", fix="set task=causal_lm")
    if settings.tasks_folder is not None and not Path(settings.tasks_folder).expanduser().is_dir():
        raise UserError(f"no such folder: {settings.tasks_folder}", where="evaluate.tasks_folder")


def run_harness(config: Config, task: Task, accelerator: Accelerator) -> dict[str, Any]:
    """Ask every model, one after the other, and return what report.json keeps."""
    settings = config.evaluate
    baseline = find_baseline(settings, list(settings.models))
    if accelerator.num_processes > 1:
        raise UserError("lm-eval runs in one process here", where="launch.num_processes", fix="set it to 1")
    folder = None if settings.tasks_folder is None else str(Path(settings.tasks_folder).expanduser())
    manager = task_manager(settings.tasks, folder)
    scores: dict[str, Scores] = {}
    costs: dict[str, dict[str, Any]] = {}
    for name, path in settings.models.items():
        notice(f"{name}: {path}")
        live = load_model(path, task, f"evaluate.models.{name}", None, accelerator.device)
        if not isinstance(live, LiveModel):
            raise UserError("lm-eval asks PyTorch models, and this one is ONNX", where=f"evaluate.models.{name}")
        scores[name] = run_tasks(live, settings.tasks, manager, settings.few_shot, settings.limit, settings.batch_size)
        costs[name] = _cost(path, live)
    first = next(iter(scores.values()))
    quality = first.quality
    drawn = _resample(settings, scores)
    return plain(
        {
            "digest": digest(config, "eval"),
            "name": config.name,
            "task": task.name,
            "dataset": f"lm-eval: {', '.join(settings.tasks)}",
            "split": None,
            "rows": sum(score in first.deciding for score in first.documents["score"]),
            "data": {},
            "quality": quality,
            "higher_is_better": first.higher_is_better,
            "teacher": next(iter(scores)),
            "baseline": baseline,
            "resampling": {"count": 0 if drawn is None else drawn.count, "seed": settings.seed},
            "agreement_of": EQUAL,
            "memory_of": "",
            "classes": None,
            "environment": environment(),
            "models": {
                name: {**_quality(name, scores, drawn, quality, baseline), **costs[name]} for name in settings.models
            },
            "differences": {},
            "samples": [],
        }
    )


def _resample(settings: EvaluateSettings, scores: Mapping[str, Scores]) -> Resampled | None:
    """Resample the documents; None where the deciding metric is no mean of them."""
    first = next(iter(scores.values()))
    if not first.higher_is_better or not set(first.deciding) <= set(first.documents["score"]):
        return None
    answers = {name: found.documents for name, found in scores.items()}
    columns, count, seconds = ("score", "value"), settings.resamples, settings.resample_seconds
    return resample(answers, judge(first.deciding, first.quality), columns, count, seconds, settings.seed)


def _quality(
    name: str, scores: Mapping[str, Scores], drawn: Resampled | None, quality: str, baseline: str | None
) -> dict[str, Any]:
    own, teacher = scores[name], next(iter(scores))
    intervals: dict[str, Any] = dict(own.intervals)
    tests = {}
    if drawn is not None and drawn.count:
        intervals |= {metric: drawn.interval(name, metric) for metric in drawn.whole[name]}
        others = [other for other in (teacher, baseline) if other is not None and other != name]
        tests = {other: drawn.difference(name, other, quality) for other in others}
    nothing = ("agreement", "divergence", "calibration", "class_f1", "confusion")
    return {
        "metrics": own.values,
        "intervals": {metric: list(bounds) for metric, bounds in intervals.items() if bounds is not None},
        "kept": kept_share(own.values[quality], scores[teacher].values[quality], own.higher_is_better),
        "against": {other: asdict(found) for other, found in tests.items() if found is not None},
        **dict.fromkeys(nothing),
    }


def _cost(path: str, live: LiveModel) -> dict[str, Any]:
    """Return what the folder tells; time and memory are measured on a dataset, not on the harness' requests."""
    return {
        "path": path,
        "parameters": live.count_parameters(),
        "nonzeros": live.count_nonzeros(),
        "bytes": size_on_disk(path),
        **dict.fromkeys(("memory", "process_memory", "latency_ms", "latency_p95_ms", "rows_per_second")),
        "notes": {},
    }
