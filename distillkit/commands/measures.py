"""What a comparison finds out about each model: quality and its uncertainty, likeness to the teacher, cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from accelerate import Accelerator
from transformers import AutoModelForCausalLM

from distillkit.commands.parts import Data, load_model
from distillkit.data.batches import by_length
from distillkit.data.encode import Encoded
from distillkit.evaluation import agreement
from distillkit.evaluation.calibration import calibration
from distillkit.evaluation.classes import count_classes
from distillkit.evaluation.evaluate import Evaluation
from distillkit.evaluation.examples import Examples
from distillkit.evaluation.memory import Memory, measure_memory
from distillkit.evaluation.resampling import Resampled
from distillkit.evaluation.samples import as_prompt, beginnings, samples
from distillkit.evaluation.size import compressed_size, size_on_disk
from distillkit.evaluation.speed import Speed, measure_speed
from distillkit.evaluation.vocabulary import Spread
from distillkit.models.live import LiveModel
from distillkit.models.onnx import OnnxModel
from distillkit.reporting.comparison import CORRELATED, EQUAL, PRUNED, kept_share
from distillkit.reporting.console import notice
from distillkit.schema import EvaluateSettings
from distillkit.tasks.base import Answers, Task, higher_is_better

AnyModel = LiveModel | OnnxModel
BASELINES = ("alone", "baseline", "uncompressed")  # an undistilled student; what `compress` started from
CONFUSABLE = 20  # classes up to which the confusion matrix is reported


@dataclass(frozen=True)
class Measured:
    """One model of a comparison, the rows as it reads them, what its evaluation found, and what is to be said."""

    path: str
    model: AnyModel
    rows: Encoded
    outcome: Evaluation
    notes: Mapping[str, Any]


@dataclass(frozen=True)
class Costs:
    """What models cost, by name; without those that were not measured."""

    speeds: dict[str, Speed]
    memory: dict[str, Memory]
    memory_of: str


def find_baseline(settings: EvaluateSettings, names: list[str]) -> str | None:
    """Return the model that stands for training without a teacher."""
    wanted = BASELINES if settings.baseline is None else (settings.baseline,)
    return next((name for name in wanted if name in names[1:]), None)


def quality_of(
    name: str, measured: Mapping[str, Measured], baseline: str | None, drawn: Resampled, metric: str
) -> dict[str, Any]:
    """Return metrics, their intervals, the share kept, and tests against the teacher and the baseline."""
    teacher, metrics = next(iter(measured)), measured[name].outcome.metrics
    intervals = {m: drawn.interval(name, m) for m in metrics if drawn.count}
    tests = {
        other: drawn.difference(name, other, metric)
        for other in (teacher, baseline)
        if other is not None and other != name and drawn.count
    }
    return {
        "metrics": metrics,
        "intervals": {m: list(bounds) for m, bounds in intervals.items() if bounds is not None},
        "kept": kept_share(metrics[metric], measured[teacher].outcome.metrics[metric], higher_is_better(metric)),
        "against": {other: asdict(found) for other, found in tests.items() if found is not None},
    }


def likeness_of(answers: Answers, teacher: Answers | None, spread: Spread | None) -> dict[str, Any]:
    """Return agreement with the teacher, divergence from it and calibration; None where there is no such thing.

    Args:
        answers: Of the model.
        teacher: The teacher's; None for the teacher itself.
        spread: What a pass over the vocabulary found; None for models whose answers hold probabilities, or none.
    """
    found: dict[str, Any] = {"agreement": None, "divergence": None, "calibration": None}
    likely = agreement.item_probabilities(answers)
    if spread is not None:
        found["calibration"] = spread.calibration.to_dict()
    elif likely is not None and "label" in answers and len(likely) == len(answers["label"]):
        found["calibration"] = calibration(likely, np.asarray(answers["label"])).to_dict()
    if teacher is None:
        return found
    taught = agreement.item_probabilities(teacher)
    if spread is not None:
        found["divergence"] = spread.divergence / max(spread.items, 1)
    elif likely is not None and taught is not None:
        found["divergence"] = agreement.divergence(likely, taught)
    measure = agreement.agreement if agreement_of(teacher) == EQUAL else agreement.correlation
    return found | {"agreement": measure(answers, teacher)}


def agreement_of(teacher: Answers) -> str:
    """Tell what agreement means for answers of this kind."""
    return CORRELATED if agreement.continuous(teacher) else EQUAL


def classes_of(answers: Answers, classes: list[str] | None) -> dict[str, Any]:
    """Return F1 of each class, and the confusion matrix of few classes."""
    counts = None if classes is None else count_classes(answers, classes)
    if counts is None:
        return {"class_f1": None, "confusion": None}
    few = counts.confusion is not None and len(counts.labelled) <= CONFUSABLE
    return {
        "class_f1": counts.f1,
        "confusion": counts.confusion.tolist() if few and counts.confusion is not None else None,
    }


def cost_of(name: str, entry: Measured, costs: Costs, sparse: bool) -> dict[str, Any]:
    """Return size (where any model is `sparse`, compressed too), memory and speed; None for what was not measured."""
    speed, memory = costs.speeds.get(name), costs.memory.get(name)
    return {
        "parameters": entry.model.count_parameters(),
        "nonzeros": entry.model.count_nonzeros(),
        "bytes": size_on_disk(entry.path),
        "compressed_bytes": compressed_size(entry.path) if sparse else None,
        "memory": None if memory is None else memory.bytes,
        "process_memory": None if memory is None else memory.process_bytes,
        "latency_ms": None if speed is None else speed.latency_ms,
        "latency_p95_ms": None if speed is None else speed.latency_p95_ms,
        "rows_per_second": None if speed is None else {str(n): rate for n, rate in speed.rows_per_second.items()},
    }


def any_sparse(measured: Mapping[str, Measured]) -> bool:
    """Tell whether weights of any model were set to zero."""
    models = [entry.model for entry in measured.values()]
    return any(model.count_nonzeros() < PRUNED * model.count_parameters() for model in models)


def measure_costs(
    measured: Mapping[str, Measured],
    task: Task,
    data: Data,
    settings: EvaluateSettings,
    accelerator: Accelerator,
) -> Costs:
    """Measure memory, each model in its own process, and then speed, all models in turn."""
    costs = Costs({}, {}, "")
    if settings.speed if settings.memory is None else settings.memory:
        costs = _measure_memory(measured, task, data, settings, accelerator)
    if settings.speed:
        notice(f"timing {len(measured)} models in turn")
        models = {name: entry.model for name, entry in measured.items()}
        sizes, rounds = settings.speed_batch_sizes, settings.speed_rounds
        data_of = {name: entry.rows for name, entry in measured.items()}
        costs.speeds.update(measure_speed(models, data_of, sizes, rounds, accelerator.device))
    return costs


def _measure_memory(
    measured: Mapping[str, Measured],
    task: Task,
    data: Data,
    settings: EvaluateSettings,
    accelerator: Accelerator,
) -> Costs:
    notice(f"measuring the memory of {len(measured)} models, each in a process of its own")
    most = max(settings.speed_batch_sizes)
    batches = {name: entry.rows.batch(by_length(entry.rows.lengths, most)[0]) for name, entry in measured.items()}
    loaders = {
        name: partial(load_model, entry.path, task, name, data.labels, accelerator.device)
        for name, entry in measured.items()
    }
    own = {type(e.model.model).__module__ for e in measured.values() if isinstance(e.model, LiveModel)}
    runtime = {"onnxruntime" for e in measured.values() if isinstance(e.model, OnnxModel)}
    found = measure_memory(loaders, batches, sorted(own | runtime))
    for name, value in found.items():
        if isinstance(value, str):
            notice(f"memory of {name}: {value}")
    where = (
        "GPU memory that torch allocated" if accelerator.device.type == "cuda" else "what a process of its own grew by"
    )
    what = f"{where}, at its peak, to load the model and answer the {most:,} longest rows at once"
    return Costs({}, {name: value for name, value in found.items() if isinstance(value, Memory)}, what)


def write_samples(
    measured: Mapping[str, Measured],
    task: Task,
    encoded: Encoded,
    examples: Examples,
    settings: EvaluateSettings,
    accelerator: Accelerator,
) -> list[dict[str, Any]]:
    """Let causal language models go on with the same prompts; of models that answered with texts, take the first."""
    if task.adds_head:
        return []
    first = next(iter(measured.values()))
    models = {name: entry.model for name, entry in measured.items() if entry.rows is first.rows}
    if task.auto_class() is AutoModelForCausalLM:
        tokenizer = first.model.tokenizer
        prompts = [as_prompt(text, tokenizer) for text in settings.prompts]
        room = max(1, task.max_length - settings.sample_tokens)
        prompts = prompts or beginnings(encoded, settings.samples, room)
        written = samples(models, prompts, settings.sample_tokens, tokenizer, accelerator.device)
        return [asdict(sample) for sample in written]
    answers = {name: entry.outcome.answers.get("text") for name, entry in measured.items()}
    return [
        {
            "prompt": "\n".join(str(value) for value in examples.inputs(index).values()),
            "continuations": {name: said[index] for name, said in answers.items() if said is not None},
        }
        for index in range(min(settings.samples, len(examples)))
        if any(said is not None for said in answers.values())
    ]
