"""Sweeps: where a job writes, and leaving nothing behind when none could start."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig


class Folder(Callback):
    """Remember which folders Hydra is about to make for a sweep: it makes them before it checks the jobs."""

    sweep: ClassVar[Path | None] = None
    missing: ClassVar[list[Path]] = []

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Note the sweep's folder and those of its parents that do not exist yet."""
        Folder.sweep = Path(config.hydra.sweep.dir)
        Folder.missing = [folder for folder in (Folder.sweep, *Folder.sweep.parents) if not folder.exists()]


def settle(cfg: DictConfig) -> None:
    """Write a sweep job's own folder into its config; a single run has it there already."""
    hydra = HydraConfig.get()
    if hydra.mode == RunMode.MULTIRUN:
        cfg.output_dir = f"{hydra.sweep.dir}/{hydra.sweep.subdir}"


def forget() -> None:
    """Start without a sweep."""
    Folder.sweep, Folder.missing = None, []


def tidy() -> None:
    """After a failure, remove job folders without content, and the sweep's own if no job wrote anything."""
    if Folder.sweep is None or not Folder.sweep.is_dir():
        return
    for folder in sorted(Folder.sweep.rglob("*"), reverse=True):
        _remove_if_empty(folder)
    if Folder.missing and [path.name for path in Folder.sweep.iterdir()] == ["multirun.yaml"]:
        (Folder.sweep / "multirun.yaml").unlink()
        for folder in Folder.missing:
            _remove_if_empty(folder)


def _remove_if_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
