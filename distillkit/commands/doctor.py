"""`distillkit doctor`: what works here and how fast; with a recipe, what its trainings would need."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import transformers

from distillkit.commands.outlook import Outlook, estimate_stages
from distillkit.data.cache import cache_folder
from distillkit.diagnosis.advice import Advice, Findings, advise, advise_on
from distillkit.diagnosis.collectives import try_collectives
from distillkit.diagnosis.devices import look_around
from distillkit.diagnosis.disk import Disk, try_disk
from distillkit.diagnosis.hub import find_hub
from distillkit.diagnosis.screen import show_advice, show_estimates, show_findings
from distillkit.diagnosis.speed import measure_speed
from distillkit.diagnosis.versions import find_versions
from distillkit.errors import UserError
from distillkit.freeze import StageJob
from distillkit.reporting.console import console
from distillkit.schema import Config, Precision


def main(config: Config, trainings: Mapping[str, StageJob], *flags: str) -> dict[str, Any]:
    """Find out, and show it as tables or (with the flag `--json`) as JSON. Nothing is left in `output_dir`.

    Returns:
        What `--json` prints.

    Raises:
        SystemExit: With 1, if something is broken that training needs.
    """
    transformers.utils.logging.set_verbosity_error()
    silent = "--json" in flags
    machine = look_around()
    with _waiting("estimating …", silent):
        outlooks = estimate_stages(trainings, machine.device)  # bad input is refused before anything is measured
    with _waiting("measuring …", silent):
        found = Findings(
            versions=find_versions(),
            machine=machine,
            hub=find_hub(),
            speed=measure_speed(machine.device),
            collectives=try_collectives(len(machine.gpus)),
            disks={"output_dir": try_disk(Path(config.output_dir)), "DISTILLKIT_CACHE": _cache_disk()},
        )
    precisions = {name: job.config.train.precision for name, job in trainings.items()}
    listed = advise(found, list(precisions.values()) or [config.train.precision], config.launch)
    for outlook in outlooks:
        if outlook.estimate is not None:
            listed += advise_on(outlook.stage, outlook.estimate, machine.room)
    report = _report(found, outlooks, precisions, listed)
    if silent:
        print(json.dumps(report, indent=2))
    else:
        show_findings(found)
        estimates = {each.stage: (each.estimate, precisions[each.stage]) for each in outlooks if each.estimate}
        show_estimates(estimates, {each.stage: each.problem for each in outlooks if each.problem}, found.speed)
        show_advice(listed)
    if any(advice.broken for advice in listed):
        raise SystemExit(1)
    return report


def _waiting(what: str, silent: bool) -> AbstractContextManager[Any]:
    """Show in a terminal that something is going on."""
    return console.status(what) if console.is_terminal and not silent else nullcontext()


def _cache_disk() -> Disk:
    """Try the folder of encoded rows."""
    try:
        folder = cache_folder(None)
    except UserError as error:
        return Disk("DISTILLKIT_CACHE", "the cache folder", 0, problem=str(error))
    assert folder is not None
    return try_disk(folder)


def _report(
    found: Findings, outlooks: Sequence[Outlook], precisions: Mapping[str, Precision], listed: Sequence[Advice]
) -> dict[str, Any]:
    trainings: dict[str, Any] = {}
    for each in outlooks:
        trainings[each.stage] = {"problem": each.problem, "estimate": None}
        if each.estimate is not None:
            seconds = each.estimate.step_seconds(found.speed, precisions[each.stage])
            steps = each.estimate.steps
            trainings[each.stage]["estimate"] = {
                **asdict(each.estimate),
                "peak_bytes": each.estimate.memory.peak,
                "step_seconds": seconds,
                "seconds": None if steps is None else steps * seconds,
            }
    return {**asdict(found), "trainings": trainings, "change": [asdict(advice) for advice in listed]}
