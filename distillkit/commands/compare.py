"""What `eval` and `compress` share: models on the same rows, side by side, as tables, pictures and a report."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator

from distillkit.commands.measures import (
    AnyModel,
    Measured,
    agreement_of,
    any_sparse,
    classes_of,
    cost_of,
    find_baseline,
    likeness_of,
    measure_costs,
    quality_of,
    write_samples,
)
from distillkit.commands.parts import Data, require_labels
from distillkit.data.encode import Encoded, encode
from distillkit.errors import UserError, did_you_mean
from distillkit.evaluation.differences import most_different, shortened
from distillkit.evaluation.evaluate import Evaluation
from distillkit.evaluation.examples import Examples
from distillkit.evaluation.resampling import Resampled, resample
from distillkit.evaluation.vocabulary import Spread, spreads
from distillkit.freeze import digest
from distillkit.models.tokenizers import same_vocabulary
from distillkit.reporting.comparison import cost_grid, heading, notes, quality_grid
from distillkit.reporting.console import notice, remark, show_table
from distillkit.reporting.environment import environment
from distillkit.reporting.files import plain, write_report
from distillkit.reporting.markdown import comparison_markdown
from distillkit.schema import Config, EvaluateSettings
from distillkit.tasks.base import Answers, Task, higher_is_better

DIFFERENCES = "differences.jsonl"
SHOWN = 5  # examples of each model in the report; all are in differences.jsonl


def encode_for(
    models: Mapping[str, AnyModel], data: Data, settings: EvaluateSettings, task: Task
) -> dict[str, Encoded]:
    """Encode the split for every model; models with the same vocabulary read the very same rows.

    Raises:
        UserError: If a model cuts texts into other tokens than the first, where it is tokens that are compared.
    """
    require_labels(data.rows, settings.split, task, "the evaluation")
    found: list[tuple[Any, Encoded]] = []
    rows = {}
    for name, model in models.items():
        known = next((encoded for tokenizer, encoded in found if same_vocabulary(tokenizer, model.tokenizer)), None)
        if known is None:
            encoded = encode(data.rows, settings.split, task, model.tokenizer, data.labels)
            known = cut(encoded, settings.limit)
            if found and not task.adds_head and not np.array_equal(known.lengths, found[0][1].lengths):
                raise not_comparable(f"evaluate.models.{name}")
            found.append((model.tokenizer, known))
        rows[name] = known
    return rows


def not_comparable(key: str) -> UserError:
    """Return the error of a model that reads other pieces of the texts than the first one."""
    return UserError(
        "another vocabulary cuts the texts of the evaluation into other pieces, which cannot be compared",
        where=key,
        fix="evaluate it in a run of its own; or trim to the texts of the evaluation's split too (splits: null)",
    )


def comparable(outcome: Evaluation, tokenizer: Any, first: Measured, task: Task, key: str) -> Evaluation:
    """Make what a model with another vocabulary answered comparable with the first model's answers, item by item.

    Tokens that it predicts are written as the first model's.

    Raises:
        UserError: If the texts are cut into other pieces, so that there is nothing to pair.
    """
    predicted, expected = (found.answers.get("prediction", []) for found in (outcome, first.outcome))
    if len(predicted) != len(expected) or (
        not task.adds_head and any(np.size(a) != np.size(b) for a, b in zip(predicted, expected, strict=True))
    ):
        raise not_comparable(key)
    if task.adds_head or not isinstance(predicted[0], np.ndarray):
        return outcome
    old = first.model.tokenizer.get_vocab()
    numbers = np.array([old.get(token, -1) for token in tokenizer.convert_ids_to_tokens(range(len(tokenizer)))])
    return replace(outcome, answers={**outcome.answers, "prediction": [numbers[ids] for ids in predicted]})


def cut(encoded: Encoded, limit: int | None) -> Encoded:
    """Keep what was made of the first rows of the split, of those of which something was made."""
    if limit is None:
        return encoded
    origins = encoded.origins
    first = np.flatnonzero(origins <= np.unique(origins)[:limit][-1])
    return replace(encoded, rows=encoded.rows.select(first), lengths=encoded.lengths[first])


def check_settings(settings: EvaluateSettings) -> None:
    """Refuse values that cannot work, by their key."""
    for key in ("batch_size", "speed_rounds", "sample_tokens"):
        if getattr(settings, key) < 1:
            raise UserError(f"must be at least 1, got {getattr(settings, key)}", where=f"evaluate.{key}")
    for key in ("resamples", "resample_seconds", "differences", "samples"):
        if getattr(settings, key) < 0:
            raise UserError(f"must be at least 0, got {getattr(settings, key)}", where=f"evaluate.{key}")
    if not settings.speed_batch_sizes or min(settings.speed_batch_sizes) < 1:
        raise UserError("needs numbers of rows, such as [8,32]", where="evaluate.speed_batch_sizes")
    if settings.limit is not None and settings.limit < 1:
        raise UserError(f"must be at least 1 or null, got {settings.limit}", where="evaluate.limit")
    if not all(text.strip() for text in settings.prompts):
        raise UserError("a prompt is empty", where="evaluate.prompts")
    known = list(settings.models)
    if settings.baseline is not None and known and settings.baseline not in known:
        fix = did_you_mean(settings.baseline, known)
        raise UserError(f"there is no model '{settings.baseline}'", where="evaluate.baseline", fix=fix)


def compare(
    config: Config,
    command: str,
    task: Task,
    data: Data,
    measured: Mapping[str, Measured],
    accelerator: Accelerator,
    folder: Path,
    conclude: Callable[[dict[str, Any]], dict[str, Any]] = lambda _: {},
) -> dict[str, Any]:
    """Compare the models with the first one and with the baseline, show tables and write the report.

    Args:
        config: Of the command.
        command: Its name.
        task: Of the models.
        data: The rows.
        measured: The models with their answers, the teacher first.
        accelerator: Its processes share what runs over all rows; the main one does the rest.
        folder: Where differences.jsonl goes.
        conclude: Returns what the command adds to the report.

    Returns:
        What report.json keeps under the command; nothing on other processes than the main one.
    """
    spread = _spreads(config.evaluate, measured, accelerator)
    if not accelerator.is_main_process:
        return {}
    report = _report(config, command, task, data, measured, accelerator, spread, folder)
    report = plain(report | conclude(report))
    show(config, command, report)
    return report


def show(config: Config, command: str, report: dict[str, Any]) -> None:
    """Write the report of a comparison, and show its tables."""
    quality, cost = quality_grid(report, compact=True), cost_grid(report)
    write_report(Path(config.output_dir), command, report, comparison_markdown(report))
    show_table(heading(report), quality.titles, quality.rows)
    show_table("", cost.titles, cost.rows)
    for what, meaning in notes(report):
        remark(f"{what}: {meaning}")
    notice(f"report: {Path(config.output_dir) / 'report.html'}")


def _report(
    config: Config,
    command: str,
    task: Task,
    data: Data,
    measured: Mapping[str, Measured],
    accelerator: Accelerator,
    spread: Mapping[str, Spread],
    folder: Path,
) -> dict[str, Any]:
    """Measure everything that one process measures."""
    settings = config.evaluate
    teacher = next(iter(measured))
    encoded = measured[teacher].rows
    baseline = find_baseline(settings, list(measured))
    costs = measure_costs(measured, task, data, settings, accelerator)
    drawn = _resample(settings, task, measured)
    sparse = any_sparse(measured)
    answers = {name: entry.outcome.answers for name, entry in measured.items()}
    rows, tokenizer = data.rows.split(settings.split), measured[teacher].model.tokenizer
    examples = Examples(rows, encoded, tokenizer, data.labels, answers[teacher])
    return {
        "digest": digest(config, command),
        "name": config.name,
        "task": task.name,
        "dataset": data.rows.name,
        "split": settings.split,
        "rows": len(examples),
        "data": asdict(encoded.counts),
        "quality": task.best_metric,
        "higher_is_better": higher_is_better(task.best_metric),
        "teacher": teacher,
        "baseline": baseline,
        "resampling": {"count": drawn.count, "seed": settings.seed},
        "agreement_of": agreement_of(answers[teacher]),
        "memory_of": costs.memory_of,
        "classes": data.labels,
        "environment": environment(),
        "models": {
            name: {
                "path": entry.path,
                **quality_of(name, measured, baseline, drawn, task.best_metric),
                **likeness_of(answers[name], None if name == teacher else answers[teacher], spread.get(name)),
                **classes_of(answers[name], data.labels),
                **cost_of(name, entry, costs, sparse),
                "notes": dict(entry.notes),
            }
            for name, entry in measured.items()
        },
        "differences": _differences(settings, examples, answers, folder),
        "samples": write_samples(measured, task, encoded, examples, settings, accelerator),
    }


def _spreads(
    settings: EvaluateSettings, measured: Mapping[str, Measured], accelerator: Accelerator
) -> dict[str, Spread]:
    """Look at distributions that the answers do not hold, since they are over a vocabulary: that of the teacher."""
    teacher = next(iter(measured.values()))
    answers = teacher.outcome.answers
    over_vocabulary = {"loss", "items"} <= set(answers) and "probabilities" not in answers
    if not settings.divergence or not over_vocabulary:
        return {}
    models = {name: entry.model for name, entry in measured.items() if entry.rows is teacher.rows}
    if accelerator.is_main_process:
        notice(f"comparing the distributions of {len(models)} models")
    return spreads(models, teacher.rows, settings.batch_size, accelerator)


def _resample(settings: EvaluateSettings, task: Task, measured: Mapping[str, Measured]) -> Resampled:
    answers = {name: entry.outcome.answers for name, entry in measured.items()}
    if settings.resamples:
        notice(f"resampling the examples {settings.resamples:,} times")
    count, seconds = settings.resamples, settings.resample_seconds
    drawn = resample(answers, task.metrics, task.metric_columns, count, seconds, settings.seed)
    if drawn.count < count:
        notice(f"stopped at {drawn.count:,} resamples; more need a larger evaluate.resample_seconds")
    return drawn


def _differences(
    settings: EvaluateSettings, examples: Examples, answers: Mapping[str, Answers], folder: Path
) -> dict[str, list[dict[str, Any]]]:
    """Write the examples on which models differ most from the teacher, and return the first of each."""
    (teacher, taught), *others = answers.items()
    if not settings.differences or not others:
        return {}
    found = {name: most_different(said, taught, examples, settings.differences) for name, said in others}
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / DIFFERENCES).open("w", encoding="utf-8") as file:
        for name, chosen in found.items():
            for example in chosen:
                line = plain({"name": name, "teacher_name": teacher, **example})
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
    return {name: [shortened(example) for example in chosen[:SHOWN]] for name, chosen in found.items()}
