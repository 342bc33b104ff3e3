"""Store the weights in half precision."""

from __future__ import annotations

import time
from typing import Any

import torch

from distillkit.compression.variant import Context, Kind, Step, Variant, torch_model
from distillkit.errors import UserError, did_you_mean
from distillkit.models.live import LiveModel
from distillkit.signals import Batch

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
TIMED, SLOWER = 3, 1.1  # calls; what counts as slower than before
CAUTION = "{} halves the size, but answers {:.1f} times slower than float32 on this {}; {}"
INSTEAD = {"float16": "try bfloat16, or compress=int8", "bfloat16": "try compress=int8"}


class Cast(Step):
    """Cast the weights and compute in their precision.

    Args:
        dtype: "float16" or "bfloat16".
    """

    gives = Kind.half

    def __init__(self, dtype: str) -> None:
        if dtype not in DTYPES:
            raise UserError(f"unknown dtype '{dtype}'", where="dtype", fix=did_you_mean(dtype, list(DTYPES)))
        self.dtype = dtype

    def __call__(self, variant: Variant, context: Context) -> Variant:
        """Cast in place, and compare how long some rows take before and after.

        Raises:
            UserError: If a weight is too large for the dtype.
        """
        live = torch_model(variant)
        example, was_float = context.example.to(live.device), live.model.dtype == torch.float32
        before = _seconds(live, example)
        cast(live.model, DTYPES[self.dtype])
        notes: dict[str, Any] = {"dtype": self.dtype}
        slower = _seconds(live, example) / before
        if was_float and slower > SLOWER:
            device = "CPU" if live.device.type == "cpu" else live.device.type
            notes["caution"] = CAUTION.format(self.dtype, slower, device, INSTEAD[self.dtype])
        return Variant(live, variant.masks, notes)


@torch.no_grad()
def _seconds(live: LiveModel, batch: Batch) -> float:
    """Return how long an answer takes: the shortest of a few after a first one."""
    times = []
    for _ in range(1 + TIMED):
        started = time.perf_counter()
        logits = live.eval()(batch).logits
        assert logits is not None
        logits.rows(0, len(logits)).sum().item()  # waits for a GPU
        times.append(time.perf_counter() - started)
    return min(times[1:])


@torch.no_grad()
def cast(model: Any, dtype: torch.dtype) -> None:
    """Cast what a saved model holds: parameters and persistent buffers.

    Other buffers, such as rotary frequencies, stay as they are: loading computes them anew, in float32.
    """
    saved = model.state_dict(keep_vars=True)
    for name, tensor in saved.items():
        if tensor.is_floating_point():
            was_finite = bool(tensor.isfinite().all())
            tensor.data = tensor.data.to(dtype)
            if was_finite and not tensor.isfinite().all():
                raise UserError(f"{name} exceeds the range of {dtype}", where="dtype", fix="use bfloat16")
    model.config.dtype = dtype
