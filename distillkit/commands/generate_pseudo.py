"""`distillkit generate-pseudo`: data from the teacher, which a dataset config reads like any other."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from distillkit.build import build
from distillkit.cache.fingerprints import weights_fingerprint
from distillkit.commands.folder import Standing, claim, standing
from distillkit.commands.parts import announce, build_required, finish, load_data, make_accelerator
from distillkit.commands.pseudo_rows import PseudoRows
from distillkit.commands.stored_outputs import StoredOutputs, store_is_whole
from distillkit.data.digest import rows_digest
from distillkit.data.rows import Rows
from distillkit.errors import UserError
from distillkit.freeze import digest
from distillkit.generation import work
from distillkit.generation.base import Asked, Generator
from distillkit.generation.teacher_store import TeacherStore
from distillkit.models.live import LiveModel
from distillkit.models.teachers import FrozenModel, LiveTeacher
from distillkit.reporting.console import ProgressDisplay, notice
from distillkit.reporting.environment import environment
from distillkit.reporting.files import read_report, write_report
from distillkit.schema import Config
from distillkit.tasks.base import Task

COMMAND = "generate-pseudo"
Product = PseudoRows | StoredOutputs
PATIENCE = 1.0  # seconds between two looks at what the other processes have done


def main(config: Config) -> dict[str, Any]:
    """Ask the teacher shard by shard; every process answers a share of the shards that are not there yet.

    Returns:
        What report.json keeps under "generate-pseudo".
    """
    task = build_required(config.task, "task")
    source = build_required(config.dataset, "dataset")
    generate: Generator = build_required(config.generate, "generate")
    generate.check(task)
    teacher = _teacher(config, generate)
    state = standing(config, COMMAND)
    folder = Path(config.output_dir)
    if state is Standing.finished and store_is_whole(folder):
        report = read_report(folder)[COMMAND]
        notice(f"already finished: {report['folder']}")
        return report
    accelerator = make_accelerator(config)
    accelerator.wait_for_everyone()
    announce(config, COMMAND, accelerator)
    data = load_data(source, task, reader=generate if generate.required_columns else None)
    live = None if teacher is None else FrozenModel(teacher.load(task, data.labels).to(accelerator.device)).live
    product = _product(folder, generate, data.rows, task, live)
    asked_about = f"{product.shards.total:,} rows of {data.rows.name}"
    name = generate.asks if teacher is None else teacher.path
    if accelerator.is_main_process:
        notice(f"teacher {name} · {asked_about}")
        claim(config, COMMAND, state)
        product.shards.begin(_origin(generate, data.rows, live))
    accelerator.wait_for_everyone()
    product.shards.join()
    started = time.monotonic()
    _answer(product, lambda: generate.prepare(live, data.rows, task), accelerator)
    report = {
        "digest": digest(config, COMMAND),
        "name": config.name,
        "teacher": name,
        "dataset": data.rows.name,
        "generator": type(generate).__name__,
        "source_rows": product.shards.total,
    }
    if accelerator.is_main_process:
        made = product.finish(report, config.generate)
        report |= {**made.facts, "environment": environment(), "seconds": time.monotonic() - started}
        spent = work.total(product.shards.folder)
        report |= {"work": spent} if spent else {}
        details = f"\n\n{made.details}" if made.details else ""
        write_report(folder, COMMAND, report, f"## Generate: {config.name}\n\n{made.text}.{details}")
        for line in (*made.examples, made.text):
            notice(line)
    # A barrier gives up after some time, and what the others wait for may take hours.
    _wait(lambda: read_report(folder).get(COMMAND, {}).get("digest") == report["digest"])
    finish(accelerator)
    return report


def _product(folder: Path, generate: Generator, rows: Rows, task: Task, live: LiveModel | None) -> Product:
    if isinstance(generate, TeacherStore):
        assert live is not None
        return StoredOutputs(folder, generate, rows, task, live)
    return PseudoRows(folder, generate, rows, task, live)


def _teacher(config: Config, generate: Generator) -> LiveTeacher | None:
    """Build the teacher, unless something else is asked."""
    if generate.asks is not None:
        return None
    teacher = build(config.teacher, "teacher")
    if not isinstance(teacher, LiveTeacher):
        raise UserError("there is no teacher to ask", where="teacher", fix="set teacher=live teacher.path=MODEL")
    return teacher


def _origin(generate: Generator, rows: Rows, live: LiveModel | None) -> dict[str, str]:
    """Tell what answers depend on and the config does not say."""
    teacher = generate.asks if live is None else weights_fingerprint(live.model)
    return {"rows": rows_digest(rows.split(generate.split)), "teacher": str(teacher)}


def _answer(product: Product, prepare: Callable[[], Asked], accelerator: Accelerator) -> None:
    """Answer this process's share of the shards that are missing, and wait until all are there."""
    shards = product.shards
    missing = shards.missing()
    accelerator.wait_for_everyone()  # until everyone has looked
    mine = missing[accelerator.process_index :: accelerator.num_processes]
    if missing and len(missing) < len(shards):
        notice(f"going on: {len(shards) - len(missing)} of {len(shards)} shards are there")
    rows = [stop - start for start, stop in map(shards.bounds, mine)]
    with ProgressDisplay("generate", sum(rows), quiet=not accelerator.is_main_process) as display:
        asked = prepare() if mine else None
        try:
            for done, number in enumerate(mine, start=1):
                assert asked is not None
                product.write(number, asked.answer(*shards.bounds(number)))
                display.update(sum(rows[:done]), f"shard {done}/{len(mine)}")
        finally:
            work.record(shards.folder, asked)
    _wait(lambda: all(shards.facts(number) is not None for number in missing))


def _wait(done: Callable[[], bool]) -> None:
    while not done():
        time.sleep(PATIENCE)
