"""`distillkit run`: the stages of a recipe in order, finished ones skipped, and one report at the end."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from distillkit.build import check
from distillkit.commands.folder import Standing, settled, standing
from distillkit.commands.release import release_memory
from distillkit.errors import UserError
from distillkit.freeze import StageJob
from distillkit.launch import start
from distillkit.reporting.console import console, heading, notice
from distillkit.reporting.files import markdown_table, read_report, write_report
from distillkit.reporting.numbers import duration
from distillkit.reporting.outcome import outcome
from distillkit.schema import Config

NODES = {
    "train": ("task", "dataset", "teacher", "student", "loss"),
    "eval": ("task", "dataset"),
    "generate-pseudo": ("task", "dataset", "teacher", "generate"),
    "compress": ("task", "dataset", "teacher", "loss"),
}


def main(config: Config, stages: dict[str, StageJob]) -> dict[str, Any]:
    """Do what is left to do of every stage.

    Returns:
        What report.json of the whole run keeps under "run".
    """
    for job in stages.values():
        _check(job)
    states = {name: standing(job.config, job.command) for name, job in stages.items()}
    started = time.monotonic()
    for number, (name, job) in enumerate(stages.items(), start=1):
        title = f"[{number}/{len(stages)}] {name} ({job.command})"
        if states[name] is Standing.finished and settled(job.config, job.command):
            notice(f"{title}: finished, skipped")
            continue
        heading(title.replace("[", "\\["))
        start(job.command, job.config)
        release_memory()
    folder = Path(config.output_dir)
    results = {name: read_report(Path(job.config.output_dir))[job.command] for name, job in stages.items()}
    report = {
        "name": config.name,
        "stages": {
            name: {"command": stages[name].command, "folder": stages[name].config.output_dir, **result}
            for name, result in results.items()
        },
    }
    rows = [[name, stages[name].command, outcome(result)] for name, result in results.items()]
    summary = markdown_table(["stage", "command", "outcome"], rows)
    details = "\n\n".join(result["markdown"] for result in reversed(results.values()))
    if os.environ.get("RANK", "0") == "0":  # the first of the processes that torchrun started
        write_report(folder, "run", report, f"# {config.name}\n\n{details}\n\n## Stages\n\n{summary}")
    notice(f"\n{config.name}: {len(stages)} stages in {duration(time.monotonic() - started)}")
    console.print(f"[bold]report: {folder / 'report.html'}[/bold]")
    return report


def _check(job: StageJob) -> None:
    """Refuse a stage's nodes before the first stage starts."""
    nodes = {key: getattr(job.config, key) for key in NODES[job.command]}
    if job.command == "compress":
        nodes |= {f"compress.steps.{name}": node for name, node in job.config.compress.steps.items()}
    for key, node in nodes.items():
        try:
            check(node, key)
        except UserError as error:
            raise UserError(str(error), where=f"stages.{job.name}") from error
