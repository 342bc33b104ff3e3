"""`distillkit compress`: chains of steps, each measured like the model that it started from."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from distillkit.build import build
from distillkit.commands.chain import START, Chain
from distillkit.commands.compare import check_settings as check_evaluate
from distillkit.commands.compare import compare
from distillkit.commands.folder import CHOSEN, Standing, claim, standing
from distillkit.commands.kept import RECORDS, Shelf, origin
from distillkit.commands.parts import (
    announce,
    build_required,
    check_fit,
    check_objective,
    check_teacher,
    finish,
    load_data,
    load_model,
    make_accelerator,
    require_labels,
)
from distillkit.commands.retraining import load_retrainer
from distillkit.compression.budget import check_budget, choose, front, is_set
from distillkit.compression.gradual import GradualPrune
from distillkit.compression.grid import Branch, expand, paths
from distillkit.compression.memory import enough_memory
from distillkit.compression.retrain import Retrain, merge
from distillkit.compression.variant import Kind, Step, check_chain
from distillkit.errors import CheckFailed, UserError, located
from distillkit.freeze import digest
from distillkit.losses.objective import Objective
from distillkit.models.codes import is_packed
from distillkit.models.live import LiveModel, whole_or_nothing
from distillkit.models.onnx import OnnxModel, is_onnx
from distillkit.models.teachers import LiveTeacher, Teacher
from distillkit.reporting.console import notice
from distillkit.reporting.files import read_report
from distillkit.schema import Config
from distillkit.tasks.base import Task
from distillkit.training.settings import check_settings as check_train


@dataclass(frozen=True)
class Plan:
    """The parts of a compression run, built but not loaded.

    Attributes:
        task: Of the models.
        source: Of the rows.
        branches: The variants to make.
        steps: Name of a variant → the step that makes it.
        teacher: Of a training step; the model to start from where none is chosen.
        objective: Of a training step.
    """

    task: Task
    source: Any
    branches: list[Branch]
    steps: Mapping[str, Step]
    teacher: Teacher | None
    objective: Objective | None

    @property
    def trains(self) -> bool:
        """Whether any step trains."""
        return any(step.trains for step in self.steps.values())


def main(config: Config) -> dict[str, Any]:
    """Make every variant, write it to `<output_dir>/compressed/<name>` and compare them all.

    Returns:
        What report.json keeps under "compress".

    Raises:
        CheckFailed: If a variant loads otherwise than it was written, or none keeps the budget.
    """
    plan = make_plan(config)
    state = standing(config, "compress")
    folder = Path(config.output_dir) / "compressed"
    if state is Standing.finished:
        notice(f"already finished: {folder}")
        report = read_report(folder.parent)["compress"]
        _settle(report, folder)
        return report
    with enough_memory("lower evaluate.batch_size"):
        return _make(config, plan, state, folder)


def _make(config: Config, plan: Plan, state: Standing, folder: Path) -> dict[str, Any]:
    accelerator = make_accelerator(config, plan.objective if plan.trains else None)
    accelerator.wait_for_everyone()
    announce(config, "compress", accelerator)
    data = load_data(plan.source, plan.task)
    require_labels(data.rows, config.evaluate.split, plan.task, "the evaluation")
    start = load_model(config.compress.model, plan.task, "compress.model", data.labels, accelerator.device)
    _check_start(plan, start)
    if any(step.calibrates for step in plan.steps.values()):
        data.rows.split(config.compress.calibration_split)
    retrainer = None
    if plan.objective is not None and plan.trains:
        assert isinstance(start, LiveModel)  # check_chain: only float32 weights are retrained
        retrainer = load_retrainer(config, plan.task, plan.objective, plan.teacher, data, start, accelerator)
    shelf = Shelf(folder, origin(digest(config, "compress"), start))
    if accelerator.is_main_process:
        claim(config, "compress", state)
        shutil.rmtree(folder / CHOSEN, ignore_errors=True)
        if config.resume == "never":
            shelf.forget()
    accelerator.wait_for_everyone()
    chain = Chain(config, plan.task, data, plan.steps, retrainer, accelerator, shelf)
    measured = chain.run(plan.branches, start)

    def conclude(report: dict[str, Any]) -> dict[str, Any]:
        return _conclusion(config, report, list(plan.steps))

    report = compare(config, "compress", plan.task, data, measured, accelerator, folder, conclude)
    finish(accelerator)
    if accelerator.is_main_process:
        _settle(report, folder)
    return report


def make_plan(config: Config) -> Plan:
    """Build the parts and refuse combinations that cannot work, before anything is loaded."""
    settings = config.compress
    if not settings.model:
        raise UserError("no model is given", where="compress.model", fix="compress.model=outputs/run/model")
    check_evaluate(replace(config.evaluate, models={}))
    check_budget(settings.budget, config.evaluate.speed)
    branches = expand(settings.steps, settings.grid)
    built = {branch.name: build(branch.node, f"compress.steps.{branch.step}") for branch in _all(branches)}
    plan = Plan(
        task=build_required(config.task, "task"),
        source=build_required(config.dataset, "dataset"),
        branches=branches,
        steps=built,
        teacher=build(config.teacher, "teacher"),
        objective=build(config.loss, "loss"),
    )
    if not plan.steps:
        raise UserError("there are no steps", where="compress.steps", fix="choose some, such as compress=prune_int8")
    for name in {START, CHOSEN, *plan.steps} & set(config.evaluate.models):
        raise UserError(f"a variant is called '{name}' too", where=f"evaluate.models.{name}", fix="rename it")
    _check_chains(plan, Kind.onnx if is_onnx(settings.model) else Kind.float32)
    for branch in _all(branches):
        _check_step(branch, plan, config)
    if plan.teacher is None and plan.trains:
        return replace(plan, teacher=LiveTeacher(settings.model))
    return plan


def _all(branches: list[Branch]) -> Iterator[Branch]:
    for branch in branches:
        yield branch
        yield from _all(branch.after)


def _check_step(branch: Branch, plan: Plan, config: Config) -> None:
    key, step = f"compress.steps.{branch.step}", plan.steps[branch.name]
    if not re.fullmatch(r"[\w-]+", branch.step) or branch.name in (START, CHOSEN):
        what = f"a step cannot be named '{branch.step}'"
        raise UserError(what, where="compress.steps", fix="use letters, digits, - and _")
    if isinstance(step, Retrain | GradualPrune):
        with located(key):
            check_train(merge(config.train, step.train))
    if step.trains:
        if plan.objective is None:
            raise UserError("retraining needs a loss, and there is none", where=key, fix="set loss=kd")
        check_fit(check_objective(plan.objective), plan.task)
        check_teacher(plan.objective, plan.teacher or LiveTeacher(config.compress.model), key)


def _check_chains(plan: Plan, start: Kind) -> None:
    for path in paths(plan.branches):
        check_chain({branch.step: plan.steps[branch.name] for branch in path}, start)


def _check_start(plan: Plan, start: LiveModel | OnnxModel) -> None:
    """Refuse what does not fit the model to start from."""
    _check_chains(plan, _kind(start))
    for branch in _all(plan.branches):
        with located(f"compress.steps.{branch.step}"):
            plan.steps[branch.name].check(start)


def _kind(model: LiveModel | OnnxModel) -> Kind:
    if isinstance(model, OnnxModel):
        return Kind.onnx
    if is_packed(model.model.config):
        return Kind.packed
    return Kind.float32 if model.model.dtype == torch.float32 else Kind.half


def _conclusion(config: Config, report: dict[str, Any], variants: list[str]) -> dict[str, Any]:
    """Return what a search adds to a report: the models that no other dominates, and what keeps the budget."""
    found: dict[str, Any] = {}
    if config.compress.grid:
        found["front"] = front(report)
    if is_set(config.compress.budget):
        found["budget"] = choose(config.compress.budget, report, START, variants)
    return found


def _settle(report: Mapping[str, Any], folder: Path) -> None:
    """Copy the chosen variant to its place; nothing is left to go on from.

    Raises:
        CheckFailed: If no variant keeps the budget.
    """
    shutil.rmtree(folder / RECORDS, ignore_errors=True)
    if "budget" not in report:
        return
    budget, target = report["budget"], folder / CHOSEN
    if budget["chosen"] is None:
        nearest = min(budget["misses"], key=lambda name: len(budget["misses"][name]))
        missed = f"{nearest}: {', '.join(budget['misses'][nearest])}"
        raise CheckFailed(f"compress.budget: no variant keeps it; {missed}")
    source = folder / budget["chosen"]
    if not target.is_dir():
        whole_or_nothing(target, lambda beside: shutil.copytree(source, beside, dirs_exist_ok=True))
    notice(f"chosen: {budget['chosen']} ({target})")
