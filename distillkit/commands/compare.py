"""What `eval` and `compress` share: models on the same rows, side by side, as a table and a report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from distillkit.commands.parts import Data, require_labels
from distillkit.data.encode import Encoded, encode
from distillkit.errors import UserError
from distillkit.evaluation.evaluate import Evaluation, agreement
from distillkit.evaluation.size import size_on_disk
from distillkit.evaluation.speed import Speed, measure_speed
from distillkit.freeze import digest
from distillkit.models.live import LiveModel
from distillkit.models.onnx import OnnxModel
from distillkit.models.tokenizers import same_vocabulary
from distillkit.reporting.comparison import Compared, comparison_table, kept_share
from distillkit.reporting.console import notice, show_table
from distillkit.reporting.files import markdown_table, write_report
from distillkit.schema import Config, EvaluateSettings
from distillkit.tasks.base import Task

AnyModel = LiveModel | OnnxModel


@dataclass(frozen=True)
class Measured:
    """One model of a comparison, with what its evaluation found and what is to be said about it."""

    path: str
    model: AnyModel
    outcome: Evaluation
    notes: Mapping[str, Any]


def encode_for(models: Mapping[str, AnyModel], data: Data, settings: EvaluateSettings, task: Task) -> Encoded:
    """Encode the split once for all models, which must read the same token ids."""
    (reference, first), *others = models.items()
    for name, model in others:
        if not same_vocabulary(model.tokenizer, first.tokenizer):
            raise UserError(
                f"'{name}' has another vocabulary than '{reference}'",
                where=f"evaluate.models.{name}",
                fix="evaluate it in a run of its own",
            )
    require_labels(data.rows, settings.split, task, "the evaluation")
    encoded = encode(data.rows, settings.split, task, first.tokenizer, data.labels)
    if settings.limit is None or settings.limit >= len(encoded):
        return encoded
    return Encoded(encoded.rows.select(range(settings.limit)), encoded.lengths[: settings.limit], encoded.collate)


def check_settings(settings: EvaluateSettings) -> None:
    """Refuse values that cannot work, by their key."""
    for key in ("batch_size", "speed_batch_size", "speed_rounds"):
        if getattr(settings, key) < 1:
            raise UserError(f"must be at least 1, got {getattr(settings, key)}", where=f"evaluate.{key}")
    if settings.limit is not None and settings.limit < 1:
        raise UserError(f"must be at least 1 or null, got {settings.limit}", where="evaluate.limit")


def compare(
    config: Config,
    command: str,
    task: Task,
    data: Data,
    encoded: Encoded,
    measured: Mapping[str, Measured],
    accelerator: Accelerator,
) -> dict[str, Any]:
    """Time the models in turn, compare each with the first one, show the table and write the report.

    Returns:
        What report.json keeps under the command.
    """
    settings, quality = config.evaluate, task.best_metric
    speeds: dict[str, Speed] = {}
    if settings.speed and accelerator.is_main_process:
        notice(f"timing {len(measured)} models in turn")
        models = {name: entry.model for name, entry in measured.items()}
        speeds = measure_speed(models, encoded, settings.speed_batch_size, settings.speed_rounds, accelerator.device)
    reference = next(iter(measured))
    teacher = measured[reference].outcome
    rows = {
        name: Compared(
            path=entry.path,
            metrics=entry.outcome.metrics,
            kept=kept_share(quality, entry.outcome.metrics[quality], teacher.metrics[quality]),
            agreement=None if name == reference else agreement(entry.outcome.answers, teacher.answers),
            parameters=entry.model.count_parameters(),
            nonzeros=entry.model.count_nonzeros(),
            bytes=size_on_disk(entry.path),
            latency_ms=speeds[name].latency_ms if name in speeds else None,
            rows_per_second=speeds[name].rows_per_second if name in speeds else None,
        )
        for name, entry in measured.items()
    }
    report = {
        "digest": digest(config, command),
        "name": config.name,
        "task": task.name,
        "dataset": data.rows.name,
        "split": settings.split,
        "rows": len(encoded),
        "quality": quality,
        "models": {name: row.to_dict() | {"notes": dict(measured[name].notes)} for name, row in rows.items()},
    }
    if accelerator.is_main_process:
        columns, cells = comparison_table(rows, quality)
        title = f"{data.rows.name}, {settings.split} split, {len(encoded):,} rows"
        cautions = [f"- {name}: {e.notes['caution']}" for name, e in measured.items() if "caution" in e.notes]
        about = f"“kept” is the share of {reference}’s {quality}, “agreement” the share of its predictions."
        parts = [f"## {title}", markdown_table(columns, cells), about, "\n".join(cautions)]
        write_report(Path(config.output_dir), command, report, "\n\n".join(part for part in parts if part))
        show_table(title, columns, cells)
        notice(f"kept, agreement: with {reference} · report: {Path(config.output_dir) / 'report.md'}")
    return report
