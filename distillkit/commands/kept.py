"""Whole variants that a `compress` which did not end has left, with what their folders do not tell."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from distillkit.cache.fingerprints import weights_fingerprint
from distillkit.compression.grid import Branch
from distillkit.compression.variant import Masks, Variant
from distillkit.models.live import LiveModel
from distillkit.models.onnx import OnnxModel
from distillkit.reporting.files import plain

RECORDS = ".kept"  # beside the variants, until the command is finished


@dataclass(frozen=True)
class Kept:
    """What the next step has to know of a variant besides its folder: as in `Variant`."""

    masks: Masks
    notes: dict[str, Any]


@dataclass(frozen=True)
class Shelf:
    """The variants of an output folder.

    Attributes:
        folder: Of the variants.
        origin: What they are made of: config and weights.
    """

    folder: Path
    origin: str

    def write(self, name: str, variant: Variant) -> None:
        """Note down that a variant's folder is whole, with the checksums of its files."""
        self._records.mkdir(exist_ok=True)
        files = [path for path in sorted((self.folder / name).rglob("*")) if path.is_file()]
        if variant.masks:
            save_file({weight: mask.cpu().contiguous() for weight, mask in variant.masks.items()}, self._masks(name))
            files.append(self._masks(name))
        sums = {str(path.relative_to(self.folder)): _checksum(path) for path in files}
        record = {"origin": self.origin, "files": sums, "masked": bool(variant.masks), "notes": plain(variant.notes)}
        beside = self._records / f"{name}.partial"
        beside.write_text(json.dumps(record, indent=1), encoding="utf-8")
        beside.replace(self._records / f"{name}.json")

    def find(self, branches: list[Branch]) -> dict[str, Kept]:
        """Return the variants that are whole, of the same origin, and made of such variants."""
        found: dict[str, Kept] = {}
        for branch in branches:
            kept = self._read(branch.name)
            if kept is not None:
                found |= {branch.name: kept, **self.find(branch.after)}
        return found

    def forget(self) -> None:
        """Remove what was noted down."""
        shutil.rmtree(self._records, ignore_errors=True)

    def _read(self, name: str) -> Kept | None:
        try:
            record = json.loads((self._records / f"{name}.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):  # none, or cut off
            return None
        paths = {self.folder / file: expected for file, expected in record["files"].items()}
        if record["origin"] != self.origin or any(_checksum(path) != expected for path, expected in paths.items()):
            return None
        return Kept(load_file(self._masks(name)) if record["masked"] else {}, record["notes"])

    @property
    def _records(self) -> Path:
        return self.folder / RECORDS

    def _masks(self, name: str) -> Path:
        return self._records / f"{name}.safetensors"


def origin(settings: str, start: LiveModel | OnnxModel) -> str:
    """Name what variants are made of.

    Args:
        settings: The digest of the config.
        start: The model that the chain starts from.
    """
    if isinstance(start, LiveModel):
        return f"{settings}/{weights_fingerprint(start.model)}"
    return "/".join([settings, *(str(_checksum(path)) for path in sorted(start.folder.glob("*.onnx*")))])


def _checksum(path: Path) -> str | None:
    """Return the SHA-256 of a file; None if it is not there."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
