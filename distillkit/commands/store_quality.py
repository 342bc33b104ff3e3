"""`distillkit eval` on teacher stores: whether they are whole, and how well they say what their teachers say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from distillkit.cache.fingerprints import weights_fingerprint
from distillkit.commands.folder import Standing, claim, standing
from distillkit.commands.parts import Data, announce, build_required, finish, load_data, make_accelerator
from distillkit.commands.stored_outputs import compare, store_lines
from distillkit.errors import UserError, located
from distillkit.freeze import digest
from distillkit.generation.teacher_store import TeacherStore
from distillkit.models.cached import CachedTeacher
from distillkit.models.teachers import FrozenModel, LiveTeacher
from distillkit.reporting.console import notice, show_table
from distillkit.reporting.environment import environment
from distillkit.reporting.files import markdown_table, write_report
from distillkit.schema import Config
from distillkit.tasks.base import Task

REPORTED = ("teacher", "items", "classes", "codec", "size", "quality")


def measure_stores(config: Config, task: Task) -> dict[str, Any]:
    """Check every shard of the stores among `evaluate.models`, and compare each store with the teacher it names.

    Returns:
        What report.json keeps under "eval".
    """
    source = build_required(config.dataset, "dataset")
    teachers = {name: CachedTeacher(path) for name, path in config.evaluate.models.items()}
    for name, teacher in teachers.items():
        with located(f"evaluate.models.{name}"):
            teacher.check(task)
    state = standing(config, "eval")
    accelerator = make_accelerator(config)
    accelerator.wait_for_everyone()
    announce(config, "eval", accelerator)
    data = load_data(source, task)
    report: dict[str, Any] = {}
    if accelerator.is_main_process:
        claim(config, "eval", Standing.unfinished if state is Standing.finished else state)
        found = {}
        for name, teacher in teachers.items():
            with located(f"evaluate.models.{name}"):
                found[name] = _measure(teacher, task, data, config.evaluate.batch_size, accelerator.device)
        report = _show(config, task, data.rows.name, found)
    finish(accelerator)
    return report


def _measure(teacher: CachedTeacher, task: Task, data: Data, batch_size: int, device: torch.device) -> dict[str, Any]:
    """Return the facts of a store, with its quality measured anew."""
    store = teacher.stores[0]
    split, kept = store.facts["dataset"]["split"], store.codec
    notice(f"{store.path}: checking {len(store.facts['shards']):,} shards")
    for number in range(len(store.facts["shards"])):
        store.check(number)
    teacher.check_rows(data.rows, data.labels, split)
    path, dtype = teacher.origin
    live = FrozenModel(LiveTeacher(path, dtype).load(task, data.labels).to(device)).live
    if weights_fingerprint(live.model) != store.facts["teacher"]["weights"]:
        raise UserError(f"the weights of its teacher {path} changed since", where=store.path, fix="make it anew")
    generate = TeacherStore(split, batch_size, kept, sample=store.facts["sample"])
    asked = generate.prepare(live, data.rows, task)
    teacher.check_encoded(asked.data)
    return store.facts | {"quality": None if kept is None else compare(store, asked, generate.sample)}


def _show(config: Config, task: Task, dataset: str, found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Write the report, and show it."""
    lines = {name: dict(store_lines(facts)) for name, facts in found.items()}
    titles = list(dict.fromkeys(title for own in lines.values() for title in own))
    rows = [[name, *(own.get(title, "–") for title in titles)] for name, own in lines.items()]
    report = {
        "digest": digest(config, "eval"),
        "name": config.name,
        "task": task.name,
        "dataset": dataset,
        "stores": {
            name: {"path": config.evaluate.models[name], **{key: facts[key] for key in REPORTED}}
            for name, facts in found.items()
        },
        "environment": environment(),
    }
    text = f"## Teacher stores: {config.name}\n\n{markdown_table(['store', *titles], rows)}"
    write_report(Path(config.output_dir), "eval", report, text)
    show_table(f"Teacher stores of {dataset}", ["store", *titles], rows)
    notice(f"report: {Path(config.output_dir) / 'report.html'}")
    return report
