"""The dense format: the logits of every class, for classifiers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from distillkit.cache.codec import Columns, Encoded, Numbers
from distillkit.errors import UserError
from distillkit.signals import DenseLogits

KINDS = {"float32": 32, "float16": 16}  # bits


class Dense:
    """All logits of an item.

    Args:
        dtype: float32, which gives the live teacher's losses, or float16.
    """

    name = "dense"

    def __init__(self, dtype: str = "float32") -> None:
        if dtype not in KINDS:
            raise UserError(f"must be one of {', '.join(KINDS)}, got '{dtype}'", where="generate.codec.dtype")
        self.dtype = dtype

    def describe(self, classes: int) -> dict[str, Any]:
        """Return what a store says about its format."""
        columns = {"logits": f"{self.dtype}, {classes} of each item"}
        return {"name": self.name, "arguments": {"dtype": self.dtype}, "classes": classes, "columns": columns}

    def encode(self, logits: Tensor, seeds: Tensor) -> Encoded:  # noqa: ARG002
        """Encode logits `[items, classes]`."""
        bits = KINDS[self.dtype]
        values = logits.float().cpu().numpy().astype(self.dtype).reshape(-1).view(f"<u{bits // 8}")
        return Encoded({"logits": Numbers(values, bits, np.full(len(logits), logits.shape[1]))})

    def decode(self, columns: Columns, classes: int) -> DenseLogits:
        """Return the items of some rows in order, on the CPU.

        Raises:
            ValueError: If a row has no whole number of items.
        """
        size = KINDS[self.dtype] // 8
        whole = b"".join(columns["logits"])
        if any(len(row) % (classes * size) for row in columns["logits"]):
            raise ValueError(f"the bytes of a row are no multiple of {classes} classes of {size} bytes")
        values = np.frombuffer(whole, dtype=f"<f{size}").reshape(-1, classes).astype(np.float32)
        return DenseLogits(torch.from_numpy(values))
