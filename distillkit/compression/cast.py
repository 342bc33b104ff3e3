"""Store the weights in half precision."""

from __future__ import annotations

from typing import Any

import torch

from distillkit.compression.variant import Context, Kind, Step, Variant, torch_model
from distillkit.errors import UserError, did_you_mean

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
CAUTION = "{} halves the size; it is fast on GPUs, but on many CPUs slower than float32"


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

    def __call__(self, variant: Variant, context: Context) -> Variant:  # noqa: ARG002
        """Cast in place.

        Raises:
            UserError: If a weight is too large for the dtype.
        """
        model = torch_model(variant).model
        cast(model, DTYPES[self.dtype])
        notes = {"dtype": self.dtype, "caution": CAUTION.format(self.dtype)}
        return Variant(variant.model, variant.masks, notes)


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
