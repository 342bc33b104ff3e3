"""`distillkit generate-pseudo`: data from the teacher, which a dataset config reads like any other."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from distillkit.build import build
from distillkit.commands.folder import Standing, claim, standing
from distillkit.commands.parts import announce, build_required, finish, load_data, make_accelerator
from distillkit.errors import UserError
from distillkit.freeze import digest
from distillkit.generation.base import Generator
from distillkit.generation.writer import describe, write_part
from distillkit.models.teachers import FrozenModel, LiveTeacher
from distillkit.reporting.console import ProgressDisplay, notice
from distillkit.reporting.environment import environment
from distillkit.reporting.files import read_report, write_report
from distillkit.schema import Config

SHOWN = 3  # examples printed at the end
ANSWERS = ("completion", "target")  # columns that a teacher writes


def main(config: Config) -> dict[str, Any]:
    """Ask the teacher, and write `<output_dir>/pseudo`; every process answers a share of the rows.

    Returns:
        What report.json keeps under "generate-pseudo".
    """
    task = build_required(config.task, "task")
    source = build_required(config.dataset, "dataset")
    generate: Generator = build_required(config.generate, "generate")
    generate.check(task)
    teacher = build(config.teacher, "teacher")
    if not isinstance(teacher, LiveTeacher):
        raise UserError("there is no teacher to ask", where="teacher", fix="set teacher=live teacher.path=MODEL")
    state = standing(config, "generate-pseudo")
    folder = Path(config.output_dir)
    if state is Standing.finished:
        notice(f"already finished: {folder / 'pseudo'}")
        return read_report(folder)["generate-pseudo"]
    accelerator = make_accelerator(config)
    accelerator.wait_for_everyone()
    announce(config, "generate-pseudo", accelerator)
    data = load_data(source, task, reader=generate)
    live = teacher.load(task, data.labels).to(accelerator.device)
    FrozenModel(live)
    total = generate.total(data.rows)
    if accelerator.is_main_process:
        notice(f"teacher {teacher.path} · {total:,} rows of {data.rows.name}")
        claim(config, "generate-pseudo", Standing.new)  # from the start, without parts that other processes left
    accelerator.wait_for_everyone()
    started = time.monotonic()
    tally: Counter[str] = Counter()
    examples: list[dict[str, Any]] = []
    share = _share(total, accelerator)
    with ProgressDisplay("generate", share.stop - share.start, quiet=not accelerator.is_main_process) as display:
        batches = _watch(generate(live, data.rows, share), display, tally, examples)
        labels = live.labels if task.has_classes else None
        write_part(folder / "pseudo", accelerator.process_index, batches, labels, task.label_column)
    counts = torch.tensor([tally["kept"], tally["cut off"], tally["empty"]], device=accelerator.device)
    kept, cut_off, empty = accelerator.reduce(counts, reduction="sum").tolist()
    if kept == 0:
        raise UserError("no answer ended by itself", where="generate.max_new_tokens", fix="raise it")
    report = {
        "digest": digest(config, "generate-pseudo"),
        "name": config.name,
        "teacher": teacher.path,
        "dataset": data.rows.name,
        "generator": type(generate).__name__,
        "rows": kept,
        "cut_off": cut_off,
        "empty": empty,
        "seconds": time.monotonic() - started,
        "environment": environment(),
    }
    if accelerator.is_main_process:
        describe(
            folder / "pseudo",
            {**report, "settings": config.generate, "labels": live.labels if task.has_classes else None},
        )
        cut = f"; {cut_off:,} cut-off answers left out" if cut_off else ""
        cut += f"; {empty:,} empty answers left out" if empty else ""
        text = f"{kept:,} rows from {teacher.path} over {data.rows.name}{cut}, in {folder / 'pseudo'}"
        write_report(folder, "generate-pseudo", report, f"## Generate: {config.name}\n\n{text}.")
        for example in examples[:SHOWN]:
            notice(f"  {_shorten(example)}")
        notice(text)
    finish(accelerator)
    return report


def _share(total: int, accelerator: Accelerator) -> slice:
    rank, processes = accelerator.process_index, accelerator.num_processes
    return slice(total * rank // processes, total * (rank + 1) // processes)


def _watch(
    batches: Iterable[list[dict[str, Any]]],
    display: ProgressDisplay,
    tally: Counter[str],
    examples: list[dict[str, Any]],
) -> Iterator[list[dict[str, Any]]]:
    """Pass rows on, without answers that were cut off or say nothing, and count."""
    asked = 0
    for batch in batches:
        asked += len(batch)
        whole = [row for row in batch if row.get("finished", True) or "text" in row]
        kept = [row for row in whole if all(row.get(name) is None or row[name].strip() for name in ANSWERS)]
        tally["kept"] += len(kept)
        tally["cut off"] += len(batch) - len(whole)
        tally["empty"] += len(whole) - len(kept)
        examples.extend(kept[: max(0, SHOWN - len(examples))])
        display.update(min(asked, display.steps), f"{tally['kept']:,} rows")
        yield kept


def _shorten(row: dict[str, Any]) -> str:
    parts = []
    for name, value in row.items():
        text = f"[{', '.join(f'{x:.2f}' for x in value[:4])}]" if isinstance(value, list) else str(value)
        parts.append(f"{name}: {text[:70]!r}" if isinstance(value, str) else f"{name}: {text[:70]}")
    return " · ".join(parts)
