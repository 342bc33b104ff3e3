"""EleutherAI's lm-evaluation-harness on our language models: the scores of its tasks, document by document."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from math import isclose, isfinite, nan
from typing import Any

from distillkit.errors import UserError, did_you_mean
from distillkit.evaluation.resampling import Judge
from distillkit.models.live import LiveModel
from distillkit.tasks.base import Answers

SHARES = frozenset({"acc", "acc_norm", "exact_match"})
PREFERRED = "acc_norm"  # decides where a task has it; else its first metric
NORMAL = 1.96  # standard errors on either side of a value that make a 95 % interval


@dataclass(frozen=True)
class Scores:
    """What the harness says about one model.

    Attributes:
        values: "task:metric" → value; and the mean of the deciding ones, if more is better in any.
        intervals: "task:metric" → 95 % interval by the harness' standard error, where it gives one.
        deciding: Of each task one metric in which more is better; or, if there is none, the first of all.
        higher_is_better: Of the deciding metrics.
        quality: Which of the values decides: "mean_acc" of shares, "mean" of others, or the first of all.
        documents: "score" ("task:metric") and "value" of each document, of the metrics that are means of documents.
    """

    values: dict[str, float]
    intervals: dict[str, list[float]]
    deciding: list[str]
    higher_is_better: bool
    quality: str
    documents: Answers


def require_harness() -> None:
    """Refuse in good time what needs the package of the `lm-eval` extra.

    Raises:
        UserError: If it is missing.
    """
    if find_spec("lm_eval") is None:
        fix = "pip install 'distillkit[lm-eval]'"
        raise UserError("the tasks of lm-eval need the package lm_eval", where="evaluate.tasks", fix=fix)


def task_manager(tasks: Sequence[str], folder: str | None) -> Any:
    """Find the tasks by name, among those of the harness and those of a folder with task files.

    Raises:
        UserError: If there is no such task.
    """
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager = TaskManager(include_path=folder)
    for name in tasks:
        if name not in manager.all_tasks:
            fix = did_you_mean(name, manager.all_tasks) if len(manager.all_tasks) < 100 else _near(name, manager)
            raise UserError(f"lm-eval has no task '{name}'", where="evaluate.tasks", fix=fix)
    return manager


def run_tasks(
    live: LiveModel, tasks: Sequence[str], manager: Any, few_shot: int | None, limit: int | None, batch_size: int
) -> Scores:
    """Let the harness ask a model.

    Args:
        live: A causal language model.
        tasks: Names.
        manager: From `task_manager`.
        few_shot: Examples before each question; None: as the task says.
        limit: Documents of each task.
        batch_size: Requests of a forward pass.

    Raises:
        UserError: If the data of a task cannot be had.
    """
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    model = HFLM(pretrained=live.model, tokenizer=live.tokenizer, batch_size=batch_size)
    try:
        found = simple_evaluate(
            model=model, tasks=list(tasks), num_fewshot=few_shot, limit=limit, task_manager=manager, log_samples=True
        )
    except OSError as error:  # also what `datasets` raises without a network
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"cannot load the data of the tasks ({reason})", where="evaluate.tasks") from error
    return collect(found, tasks)


def collect(found: dict[str, Any], tasks: Sequence[str]) -> Scores:
    """Read the scores of the tasks that were asked for from what `simple_evaluate` returns."""
    values: dict[str, float] = {}
    intervals: dict[str, list[float]] = {}
    main: list[tuple[str, bool]] = []
    documents: Answers = {"score": [], "value": []}
    for task in tasks:
        metrics = _metrics(found["results"][task])
        better = found.get("higher_is_better", {}).get(task, {})
        for metric, (value, error) in metrics.items():
            name = f"{task}:{metric}"
            values[name] = value
            if error is not None:
                intervals[name] = [value - NORMAL * error, value + NORMAL * error]
            own = _documents(found.get("samples", {}).get(task, []), metric, value)
            documents["score"] += [name] * len(own)
            documents["value"] += own
        decides = PREFERRED if PREFERRED in metrics else next(iter(metrics))
        main.append((f"{task}:{decides}", bool(better.get(decides, True))))
    more = [name for name, is_so in main if is_so]
    if not more:
        return Scores(values, intervals, [main[0][0]], False, main[0][0], documents)
    mean = "mean_acc" if all(name.rpartition(":")[2] in SHARES for name in more) else "mean"
    values = {mean: sum(values[name] for name in more) / len(more)} | values
    return Scores(values, intervals, more, True, mean, documents)


def judge(deciding: Sequence[str], mean: str) -> Judge:
    """Return what turns documents, all or a resample, into the mean of each score and the mean of the deciding ones."""

    def means(answers: Answers) -> dict[str, float]:
        sums: dict[str, list[float]] = {}
        for score, value in zip(answers["score"], answers["value"], strict=True):
            sums.setdefault(score, []).append(value)
        found = {score: sum(own) / len(own) for score, own in sums.items()}
        return {mean: sum(found.get(name, nan) for name in deciding) / len(deciding)} | found

    return means


def _metrics(result: dict[str, Any]) -> dict[str, tuple[float, float | None]]:
    """Return metric → (value, standard error) of the first filter of each; the harness writes "metric,filter"."""
    found: dict[str, tuple[float, float | None]] = {}
    for key, value in result.items():
        metric, comma, chosen = key.partition(",")
        if not comma or metric.endswith("_stderr") or metric in found or not isinstance(value, int | float):
            continue
        error = result.get(f"{metric}_stderr,{chosen}")
        known = isinstance(error, int | float) and isfinite(error)
        found[metric] = (float(value), float(error) if known and error is not None else None)
    return found


def _documents(samples: Sequence[dict[str, Any]], metric: str, value: float) -> list[float]:
    """Return the value of each document if the metric is their mean."""
    own = [sample.get(metric) for sample in samples if sample.get("filter") in (None, samples[0].get("filter"))]
    numbers = [float(one) for one in own if isinstance(one, int | float)]
    if not numbers or len(numbers) < len(own):
        return []
    return numbers if isclose(sum(numbers) / len(numbers), value, rel_tol=1e-6, abs_tol=1e-9) else []


def _near(name: str, manager: Any) -> str:
    found = did_you_mean(name, manager.all_tasks) or ""
    return found if found.startswith("did you mean") else "`lm_eval ls tasks` lists them"
