"""`distillkit compress`: a chain of steps, each measured like the model that it started from."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from distillkit.build import build
from distillkit.commands.compare import check_settings as check_evaluate
from distillkit.commands.compare import compare, encode_for
from distillkit.commands.folder import Standing, claim, standing
from distillkit.commands.measures import Measured
from distillkit.commands.parts import (
    Data,
    announce,
    build_required,
    check_fit,
    check_objective,
    check_teacher,
    finish,
    load_data,
    load_model,
    make_accelerator,
)
from distillkit.commands.retraining import Retrainer, load_retrainer, scratch_folder
from distillkit.compression.retrain import Retrain, merge
from distillkit.compression.variant import Context, Kind, Step, Variant, check_chain
from distillkit.data.encode import Encoded
from distillkit.errors import UserError, located
from distillkit.evaluation.evaluate import evaluate
from distillkit.losses.objective import Objective
from distillkit.models.live import LiveModel
from distillkit.models.onnx import OnnxModel, is_onnx
from distillkit.models.teachers import Teacher
from distillkit.reporting.console import notice
from distillkit.reporting.files import read_report
from distillkit.schema import Config
from distillkit.signals import ABSENT, Batch, Model
from distillkit.tasks.base import Task
from distillkit.training.settings import check_settings as check_train

START = "uncompressed"
EXAMPLES = 8  # rows for tracing exports and for the check that what was written loads again


@dataclass(frozen=True)
class Plan:
    """The parts of a compression run, built but not loaded."""

    task: Task
    source: Any
    steps: Mapping[str, Step]
    teacher: Teacher | None
    objective: Objective | None

    @property
    def trains(self) -> bool:
        """Whether any step trains."""
        return any(step.trains for step in self.steps.values())


def main(config: Config) -> dict[str, Any]:
    """Apply the steps in order and write every variant to `<output_dir>/compressed/<step>`.

    Returns:
        What report.json keeps under "compress".
    """
    plan = make_plan(config)
    state = standing(config, "compress")
    folder = Path(config.output_dir)
    if state is Standing.finished:
        notice(f"already finished: {folder / 'compressed'}")
        return read_report(folder)["compress"]
    accelerator = make_accelerator(config, plan.objective if plan.trains else None)
    accelerator.wait_for_everyone()
    announce(config, "compress", accelerator)
    data = load_data(plan.source, plan.task)
    start = _load(config.compress.model, "compress.model", plan, data, accelerator)
    check_chain(plan.steps, _kind(start))
    for name, step in plan.steps.items():
        with located(f"compress.steps.{name}"):
            step.check(start)
    encoded = encode_for({START: start}, data, config.evaluate, plan.task)
    retrainer = None
    if plan.objective is not None and plan.trains:
        assert isinstance(start, LiveModel)  # check_chain: only float32 weights are retrained
        retrainer = load_retrainer(config, plan.task, plan.objective, plan.teacher, data, start, accelerator)
    if accelerator.is_main_process:
        claim(config, "compress", state)
    accelerator.wait_for_everyone()
    measured = _apply(plan, config, data, start, encoded, retrainer, accelerator)
    report = compare(config, "compress", plan.task, data, encoded, measured, accelerator, folder / "compressed")
    finish(accelerator)
    return report


def _apply(
    plan: Plan,
    config: Config,
    data: Data,
    start: LiveModel | OnnxModel,
    encoded: Encoded,
    retrainer: Retrainer | None,
    accelerator: Accelerator,
) -> dict[str, Measured]:
    """Apply the steps in order; each variant is saved, loaded again from its folder and evaluated."""
    say = notice if accelerator.is_main_process else _silent
    compressed = Path(config.output_dir) / "compressed"
    scratch = scratch_folder(compressed, accelerator.process_index)
    shutil.rmtree(scratch, ignore_errors=True)

    def measure(path: str, key: str, notes: Mapping[str, Any]) -> Measured:
        model = _load(path, key, plan, data, accelerator)
        outcome = evaluate(model, plan.task, encoded, config.evaluate.batch_size, accelerator)
        quality = plan.task.best_metric
        say(f"{key.rpartition('.')[2]}: {quality} {outcome.metrics[quality]:.4f}")
        return Measured(path, model, outcome, notes)

    example = encoded.batch(range(min(EXAMPLES, len(encoded))))
    measured = {START: measure(config.compress.model, START, {})}
    variant = Variant(start)
    for name, step in plan.steps.items():
        say(f"{name}: {type(step).__name__}")
        retrain = partial(retrainer.retrain, name) if retrainer is not None else None
        path, key = compressed / name, f"compress.steps.{name}"
        with located(key):
            variant = step(variant, Context(example, config.train, retrain, scratch / name))
        if accelerator.is_main_process:
            variant.model.save(path)
        accelerator.wait_for_everyone()
        measured[name] = measure(str(path), key, variant.notes)
        check_reloaded(variant.model, measured[name].model, example.to(accelerator.device), path)
        if "caution" in variant.notes:
            say(f"{name}: {variant.notes['caution']}")
    shutil.rmtree(scratch, ignore_errors=True)
    return measured


def make_plan(config: Config) -> Plan:
    """Build the parts and refuse combinations that cannot work, before anything is loaded."""
    if not config.compress.model:
        raise UserError("no model is given", where="compress.model", fix="compress.model=outputs/run/model")
    check_evaluate(config.evaluate)
    built = {name: build(node, f"compress.steps.{name}") for name, node in config.compress.steps.items()}
    plan = Plan(
        task=build_required(config.task, "task"),
        source=build_required(config.dataset, "dataset"),
        steps={name: step for name, step in built.items() if step is not None},
        teacher=build(config.teacher, "teacher"),
        objective=build(config.loss, "loss"),
    )
    if not plan.steps:
        raise UserError("there are no steps", where="compress.steps", fix="choose some, such as compress=prune_int8")
    check_chain(plan.steps, Kind.onnx if is_onnx(config.compress.model) else Kind.float32)
    for name, step in plan.steps.items():
        if not re.fullmatch(r"[\w-]+", name) or name == START:
            raise UserError(
                f"a step cannot be named '{name}'", where="compress.steps", fix="use letters, digits, - and _"
            )
        if isinstance(step, Retrain):
            with located(f"compress.steps.{name}"):
                check_train(merge(config.train, step.train))
        if step.trains:
            _check_loss(f"compress.steps.{name}", plan)
    return plan


def _check_loss(where: str, plan: Plan) -> None:
    if plan.objective is None:
        raise UserError("retraining needs a loss, and there is none", where=where, fix="set loss=kd")
    check_fit(check_objective(plan.objective), plan.task)
    check_teacher(plan.objective, plan.teacher, where)


def _load(path: str, key: str, plan: Plan, data: Data, accelerator: Accelerator) -> LiveModel | OnnxModel:
    return load_model(path, plan.task, key, data.labels, accelerator.device)


def _kind(model: LiveModel | OnnxModel) -> Kind:
    if isinstance(model, OnnxModel):
        return Kind.onnx
    return Kind.float32 if model.model.dtype == torch.float32 else Kind.half


@torch.no_grad()
def check_reloaded(written: Model, loaded: Model, example: Batch, path: Path) -> None:
    """Compare the answers of a model with those of what was loaded from its folder.

    Raises:
        RuntimeError: If they differ.
    """
    expected, found = written(example).logits, loaded(example).logits
    assert expected is not None
    assert found is not None
    logits = expected.rows(0, len(expected)).float()
    difference = float((found.rows(0, len(found)).float() - logits).abs().max())
    if not difference <= 1e-5 * max(1.0, float(logits[logits > ABSENT / 2].abs().max())):
        raise RuntimeError(f"what was loaded again from {path} differs by {difference:.2g} in its logits")


def _silent(text: str) -> None:
    """Say nothing: another process speaks."""
