"""`distillkit eval`: any number of models side by side in one table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from distillkit.build import build
from distillkit.cache.store import is_store
from distillkit.commands.compare import check_settings, comparable, compare, encode_for, show
from distillkit.commands.folder import Standing, claim, standing
from distillkit.commands.harness import check_harness, run_harness
from distillkit.commands.measures import Measured
from distillkit.commands.parts import announce, build_required, finish, load_data, load_model, make_accelerator
from distillkit.commands.store_quality import measure_stores
from distillkit.errors import UserError
from distillkit.evaluation.evaluate import evaluate
from distillkit.reporting.console import notice
from distillkit.schema import Config
from distillkit.tasks.base import Task


def main(config: Config) -> dict[str, Any]:
    """Evaluate every model of `evaluate.models`; the first is the one that the others are compared with.

    Returns:
        What report.json keeps under "eval".
    """
    settings = config.evaluate
    task = build_required(config.task, "task")
    if not settings.models:
        raise UserError("no model is given", where="evaluate.models", fix="+evaluate.models.student=outputs/run/model")
    check_settings(settings)
    stores = [name for name, path in settings.models.items() if is_store(path)]
    if stores:
        if len(stores) < len(settings.models):
            fix = "evaluate it in a run of its own"
            raise UserError("is a teacher store among models", where=f"evaluate.models.{stores[0]}", fix=fix)
        return measure_stores(config, task)
    if settings.tasks:
        return _by_harness(config, task)
    source = build(config.dataset, "dataset")
    if source is None:
        fix = "choose a dataset, or evaluate=lm_eval evaluate.tasks=[…]"
        raise UserError("there is nothing to evaluate on", where="dataset", fix=fix)
    state = standing(config, "eval")
    accelerator = make_accelerator(config)
    accelerator.wait_for_everyone()
    announce(config, "eval", accelerator)
    data = load_data(source, task)
    models = {
        name: load_model(path, task, f"evaluate.models.{name}", data.labels, accelerator.device)
        for name, path in settings.models.items()
    }
    rows = encode_for(models, data, settings, task)
    if accelerator.is_main_process:
        claim(config, "eval", Standing.unfinished if state is Standing.finished else state)
    measured: dict[str, Measured] = {}
    for name, model in models.items():
        if accelerator.is_main_process:
            notice(f"{name}: {settings.models[name]}")
        outcome = evaluate(model, task, rows[name], settings.batch_size, accelerator)
        first = next(iter(measured.values()), None)
        if first is not None and rows[name] is not first.rows:
            outcome = comparable(outcome, model.tokenizer, first, task, f"evaluate.models.{name}")
        measured[name] = Measured(settings.models[name], model, rows[name], outcome, {})
    report = compare(config, "eval", task, data, measured, accelerator, Path(config.output_dir))
    finish(accelerator)
    return report


def _by_harness(config: Config, task: Task) -> dict[str, Any]:
    """Compare the models on the tasks of lm-eval."""
    check_harness(config.evaluate, task)
    state = standing(config, "eval")
    accelerator = make_accelerator(config)
    announce(config, "eval", accelerator)
    report = run_harness(config, task, accelerator)
    claim(config, "eval", Standing.unfinished if state is Standing.finished else state)
    show(config, "eval", report)
    finish(accelerator)
    return report
