"""`distillkit eval`: any number of models side by side in one table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from distillkit.commands.folder import Standing, claim, standing
from distillkit.commands.parts import Data, build_required, load_data, load_model, make_accelerator
from distillkit.data.encode import Encoded, encode
from distillkit.errors import UserError
from distillkit.evaluation.evaluate import evaluate
from distillkit.evaluation.size import size_on_disk
from distillkit.evaluation.speed import measure_speed
from distillkit.freeze import digest
from distillkit.models.live import LiveModel
from distillkit.models.onnx import OnnxModel
from distillkit.reporting.comparison import Compared, comparison_table, kept_share
from distillkit.reporting.console import heading, notice, show_table
from distillkit.reporting.files import markdown_table, write_report
from distillkit.schema import Config, EvaluateSettings
from distillkit.tasks.base import Task


def main(config: Config) -> dict[str, Any]:
    """Evaluate every model of `evaluate.models`; the first is the one that the others are compared with.

    Returns:
        What report.json keeps under "eval".
    """
    settings = config.evaluate
    task = build_required(config.task, "task")
    source = build_required(config.dataset, "dataset")
    check_settings(settings)
    state = standing(config, "eval")
    accelerator = make_accelerator(config)
    accelerator.wait_for_everyone()
    main_process = accelerator.is_main_process
    if main_process:
        heading(f"eval {config.name}")
    data = load_data(source, task)
    models = {
        name: load_model(path, task, f"evaluate.models.{name}", data.labels, accelerator.device)
        for name, path in settings.models.items()
    }
    encoded = encode_for(models, data, settings, task)
    if main_process:
        claim(config, "eval", state if state is Standing.new else Standing.unfinished)
    reference, compared = None, {}
    for name, model in models.items():
        if main_process:
            notice(f"{name}: {settings.models[name]}")
        outcome = evaluate(model, task, encoded, settings.batch_size, accelerator, reference)
        reference = outcome.predictions if reference is None else reference
        compared[name] = outcome.metrics
    speeds = {}
    if settings.speed and main_process:
        notice(f"timing {len(models)} models in turn")
        speeds = measure_speed(models, encoded, settings.speed_batch_size, settings.speed_rounds, accelerator.device)
    quality = task.best_metric
    first = next(iter(compared.values()))[quality]
    rows = {
        name: Compared(
            path=settings.models[name],
            metrics=metrics,
            kept=kept_share(quality, metrics[quality], first),
            parameters=models[name].count_parameters(),
            nonzeros=models[name].count_nonzeros(),
            bytes=size_on_disk(settings.models[name]),
            latency_ms=speeds[name].latency_ms if name in speeds else None,
            rows_per_second=speeds[name].rows_per_second if name in speeds else None,
        )
        for name, metrics in compared.items()
    }
    report = {
        "digest": digest(config, "eval"),
        "name": config.name,
        "task": task.name,
        "dataset": data.rows.name,
        "split": settings.split,
        "rows": len(encoded),
        "quality": quality,
        "models": {name: row.to_dict() for name, row in rows.items()},
    }
    if main_process:
        columns, cells = comparison_table(rows, quality)
        title = f"{data.rows.name}, {settings.split} split, {len(encoded):,} rows; kept and agreement: of {cells[0][0]}"
        write_report(Path(config.output_dir), "eval", report, f"## {title}\n\n{markdown_table(columns, cells)}")
        show_table(title, columns, cells)
        notice(f"report: {Path(config.output_dir) / 'report.md'}")
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return report


def encode_for(models: dict[str, LiveModel | OnnxModel], data: Data, settings: EvaluateSettings, task: Task) -> Encoded:
    """Encode the split once for all models, which must read the same token ids."""
    first = next(iter(models.values()))
    for name, model in models.items():
        if model.tokenizer.get_vocab() != first.tokenizer.get_vocab():
            raise UserError(
                f"'{name}' has another vocabulary than '{next(iter(models))}'",
                where=f"evaluate.models.{name}",
                fix="evaluate it in a run of its own",
            )
    encoded = encode(data.rows, settings.split, task, first.tokenizer, data.labels)
    if settings.limit is None or settings.limit >= len(encoded):
        return encoded
    return Encoded(encoded.rows.select(range(settings.limit)), encoded.lengths[: settings.limit], encoded.collate)


def check_settings(settings: EvaluateSettings) -> None:
    """Refuse values that cannot work, by their key."""
    if not settings.models:
        raise UserError("no model is given", where="evaluate.models", fix="+evaluate.models.student=outputs/run/model")
    for key in ("batch_size", "speed_batch_size", "speed_rounds"):
        if getattr(settings, key) < 1:
            raise UserError(f"must be at least 1, got {getattr(settings, key)}", where=f"evaluate.{key}")
    if settings.limit is not None and settings.limit < 1:
        raise UserError(f"must be at least 1 or null, got {settings.limit}", where="evaluate.limit")
