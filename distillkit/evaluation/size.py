"""How big a model is on disk."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import try_to_load_from_cache

WEIGHTS = ("*.safetensors", "*.onnx", "*.onnx.data")


def size_on_disk(path: str) -> int | None:
    """Return the bytes of the weight files of a model folder or of a cached hub model; None if there are none."""
    folder = Path(path).expanduser()
    if not folder.is_dir():
        cached = try_to_load_from_cache(path, "config.json")
        if not isinstance(cached, str):
            return None
        folder = Path(cached).parent
    return sum(file.stat().st_size for pattern in WEIGHTS for file in folder.glob(pattern)) or None
