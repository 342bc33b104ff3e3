"""Sweeps: where a job writes, the table of what all jobs came to, and leaving nothing behind when none could start."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig


class Sweep(Callback):
    """What is known of the sweep that is under way.

    Attributes:
        command: What each job does.
        folder: Of the sweep; None in a single run.
        missing: Folders that Hydra is about to make: it makes them before it checks the jobs.
        jobs: Number of a job → its values, as they stand on the command line.
        searching: Whether a search decides what a failed job means.
    """

    command: ClassVar[str] = ""
    folder: ClassVar[Path | None] = None
    missing: ClassVar[list[Path]] = []
    jobs: ClassVar[dict[int, dict[str, str]]] = {}
    searching: ClassVar[bool] = False

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Note the sweep's folder and those of its parents that do not exist yet."""
        Sweep.folder = Path(config.hydra.sweep.dir)
        Sweep.missing = [folder for folder in (Sweep.folder, *Sweep.folder.parents) if not folder.exists()]

    def on_job_end(self, config: DictConfig, **_: Any) -> None:
        """Note the job's values."""
        if config.hydra.mode == RunMode.MULTIRUN:
            pairs = (override.partition("=") for override in config.hydra.overrides.task)
            Sweep.jobs[config.hydra.job.num] = {key: value for key, _, value in pairs}

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Write the table of a grid of trainings; a search has written its own."""
        if Sweep.command == "train" and not Sweep.searching and len(Sweep.jobs) > 1:
            from distillkit.reporting.sweeps import write_grid

            write_grid(Path(config.hydra.sweep.dir), str(config.name), Sweep.jobs)


def settle(cfg: DictConfig) -> None:
    """Write a sweep job's own folder into its config; a single run has it there already."""
    hydra = HydraConfig.get()
    if hydra.mode == RunMode.MULTIRUN:
        cfg.output_dir = f"{hydra.sweep.dir}/{hydra.sweep.subdir}"


def begin(command: str) -> None:
    """Start without a sweep."""
    Sweep.command, Sweep.folder, Sweep.missing, Sweep.jobs, Sweep.searching = command, None, [], {}, False


def tidy() -> None:
    """After a failure, remove job folders without content, and the sweep's own if no job wrote anything."""
    if Sweep.folder is None or not Sweep.folder.is_dir():
        return
    for folder in sorted(Sweep.folder.rglob("*"), reverse=True):
        _remove_if_empty(folder)
    if Sweep.missing and [path.name for path in Sweep.folder.iterdir()] == ["multirun.yaml"]:
        (Sweep.folder / "multirun.yaml").unlink()
        for folder in Sweep.missing:
            _remove_if_empty(folder)


def _remove_if_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
