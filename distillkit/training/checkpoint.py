"""Checkpoints: which there are, whether they are whole, and how they are read; tensors and JSON only, no pickle."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, load_model, save_model
from torch import Tensor, nn

from distillkit.data.encode import Counts
from distillkit.data.plans import Place
from distillkit.data.sealed import CHECKSUM, checksum, unsealed
from distillkit.errors import UserError
from distillkit.training.states import restore
from distillkit.training.stopping import Patience

MANIFEST = "manifest.json"
BEST = "best.safetensors"  # weights of the best evaluation: of the run until it is finished, and of a checkpoint


@dataclass
class Progress:
    """Where a run stands: what is not weights or optimiser state.

    Attributes:
        step: Optimiser steps done.
        window_sums: Sum of each loss term since the last logged step, of this process `[terms]`.
        window_counts: Items of each since then, of all processes `[terms]`.
        best_step: The step with the best evaluation so far; None before the first.
        best_value: Its metric.
        patience: What early stopping remembers.
        place: Where the step stands in a stream of rows; None where a step stands for itself.
    """

    step: int
    window_sums: Tensor
    window_counts: Tensor
    best_step: int | None = None
    best_value: float | None = None
    patience: Patience = field(default_factory=Patience)
    place: Place | None = None


def load_checkpoint(
    path: Path, trainee: nn.Module, optimizer: Any, accelerator: Accelerator, device: torch.device
) -> Progress:
    """Restore weights, optimiser, random state and progress from a verified checkpoint."""
    state = read_state(path)
    restore(path, trainee, optimizer, state["groups"])
    if accelerator.scaler is not None:
        accelerator.scaler.load_state_dict(state["scaler"])
    counts = torch.tensor(state["window_counts"], dtype=torch.float64, device=device)
    sums = torch.zeros(len(counts), device=device)
    if state["processes"] == accelerator.num_processes:
        own = load_file(path / f"process-{accelerator.process_index}.safetensors")
        sums = own.pop("window_sums").to(device)
        restore_random_state(own)
    elif accelerator.is_main_process:
        every = [load_file(path / f"process-{rank}.safetensors") for rank in range(state["processes"])]
        sums = torch.stack([part["window_sums"] for part in every]).sum(dim=0).to(device)
    patience = Patience(**state["patience"])
    return Progress(state["step"], sums, counts, state["best_step"], state["best_value"], patience, _place(state))


def keep_best(folder: Path, path: Path) -> list[str]:
    """Give a checkpoint the best weights of its run so far, which later ones replace; return the files' names."""
    if not (folder / BEST).is_file():
        return []
    try:
        (path / BEST).hardlink_to(folder / BEST)
    except OSError:  # a file system without links
        shutil.copyfile(folder / BEST, path / BEST)
    return [BEST]


def restore_best(path: Path, folder: Path) -> None:
    """Copy the best weights that a checkpoint has, if any, to where a run that resumes from it looks for them."""
    if (path / BEST).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        beside = (folder / BEST).with_suffix(".partial")
        shutil.copyfile(path / BEST, beside)
        beside.replace(folder / BEST)


def _place(state: dict[str, Any]) -> Place | None:
    found = state.get("place")
    return None if found is None else Place(**{**found, "counts": Counts(**found["counts"])})


def checkpoints(folder: Path) -> list[Path]:
    """List the checkpoints of a folder, damaged or not, in the order of their steps."""
    found = (path for path in folder.glob("step-*") if path.name.removeprefix("step-").isdecimal())
    return sorted(found, key=step_of)


def step_of(path: Path) -> int:
    """Return the optimiser steps that were done when a checkpoint was written."""
    return int(path.name.removeprefix("step-"))


def newest_checkpoint(folder: Path) -> tuple[Path | None, list[str]]:
    """Return the newest whole checkpoint, and why newer ones were passed over."""
    skipped: list[str] = []
    for path in reversed(checkpoints(folder)):
        problem = find_damage(path)
        if problem is None:
            return path, skipped
        skipped.append(f"{path.name} skipped: {problem}")
    return None, skipped


def find_damage(path: Path) -> str | None:
    """Compare a checkpoint's files with its manifest; return what is wrong, or None."""
    try:
        data = (path / MANIFEST).read_bytes()
        expected = dict(json.loads(data))
        if CHECKSUM in expected:  # older ones have none
            expected = unsealed(data)
    except (OSError, ValueError, TypeError):
        expected = {}
    if not expected:
        return f"{MANIFEST} is missing or damaged"
    for name, digest in expected.items():
        if not (path / name).is_file():
            return f"{name} is missing"
        if checksum(path / name) != digest:
            return f"{name} is damaged"
    return None


def check_resumable(path: Path, digest: str) -> None:
    """Refuse a checkpoint that is damaged or belongs to another config."""
    if not path.is_dir():
        raise UserError(f"no such checkpoint: {path}", where="resume")
    problem = find_damage(path)
    if problem is not None:
        raise UserError(f"checkpoint {path} cannot be used: {problem}", where="resume")
    if read_state(path)["digest"] != digest:
        raise UserError(
            f"checkpoint {path} was written by a run with another config",
            where="resume",
            fix="resume with that config, or start from its weights with student=pretrained",
        )


def read_state(path: Path) -> dict[str, Any]:
    """Read a checkpoint's state.json."""
    return json.loads((path / "state.json").read_text(encoding="utf-8"))


def save_weights(module: nn.Module, path: Path) -> None:
    """Write the weights of a module to one safetensors file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".partial")
    save_model(module, str(beside))
    beside.rename(path)


def load_weights(module: nn.Module, path: Path) -> None:
    """Read weights that `save_weights` wrote."""
    try:
        load_model(module, str(path))
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot be read ({error})", where=str(path)) from error


def random_state() -> dict[str, Tensor]:
    """Return torch's random state of the CPU and of every GPU."""
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), **{f"cuda-{index}": state for index, state in enumerate(gpus)}}


def restore_random_state(state: dict[str, Tensor]) -> None:
    """Set torch's random state."""
    torch.set_rng_state(state["cpu"])
    gpus = [state[f"cuda-{index}"] for index in range(len(state) - 1)]
    if gpus:
        torch.cuda.set_rng_state_all(gpus)
