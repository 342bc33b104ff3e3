"""How big a model is on disk."""

from __future__ import annotations

import zlib
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

WEIGHTS = ("*.safetensors", "*.onnx", "*.onnx.data", "*.gguf")


PIECE = 1 << 20  # bytes that are compressed at a time


def size_on_disk(path: str) -> int | None:
    """Return the bytes of the weight files of a model folder or of a cached hub model; None if there are none."""
    return sum(file.stat().st_size for file in _weights(path)) or None


def compressed_size(path: str) -> int | None:
    """Return the bytes that the weight files would take in a zip file: what zeros save in storage and transfer."""
    total = 0
    for file in _weights(path):
        packer = zlib.compressobj(level=1)
        with file.open("rb") as stream:
            while piece := stream.read(PIECE):
                total += len(packer.compress(piece))
        total += len(packer.flush())
    return total or None


def _weights(path: str) -> list[Path]:
    folder = Path(path).expanduser()
    if not folder.is_dir():
        cached = try_to_load_from_cache(path, "config.json")
        if not isinstance(cached, str):
            return []
        folder = Path(cached).parent
    return [file for pattern in WEIGHTS for file in folder.glob(pattern)]
