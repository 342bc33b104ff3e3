"""Weights that a compressed-tensors folder holds as codes of few bits: found, and turned into floats."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from importlib.util import find_spec
from typing import Any

from distillkit.errors import UserError

LEFT_OVER = ("weight_scale", "weight_shape", "weight_zero_point")  # of a module, after unpacking


def require_compressed_tensors() -> None:
    """Refuse in good time what needs the `compressed-tensors` extra.

    Raises:
        UserError: If it is missing.
    """
    if find_spec("compressed_tensors") is None:
        raise UserError("this needs compressed-tensors", fix="pip install 'distillkit[compressed-tensors]'")


def is_packed(config: Any) -> bool:
    """Tell by a transformers config whether its folder holds codes instead of weights."""
    return bool(getattr(config, "quantization_config", None))


def unpack(model: Any) -> None:
    """Turn the codes of a loaded model into floats, once, as its first forward pass would."""
    with silent():
        model.hf_quantizer.compressor.decompress_model(model)
    for module in model.modules():
        for name in LEFT_OVER:
            if name in module._parameters:
                del module._parameters[name]


@contextmanager
def silent() -> Iterator[None]:
    """Keep the progress bars of compressed-tensors off the console."""
    with redirect_stderr(io.StringIO()):
        yield
