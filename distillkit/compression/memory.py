"""Say in one line that memory did not suffice."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from distillkit.errors import UserError

SIGNS = re.compile(
    r"out of memory|not enough memory|can't allocate memory|bad allocation|std::bad_alloc", re.IGNORECASE
)


@contextmanager
def enough_memory() -> Iterator[None]:
    """Turn what PyTorch, Python and ONNX Runtime raise when memory is short into one error.

    Raises:
        UserError: If there is too little memory for what happens inside.
    """
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and not SIGNS.search(str(error)):
            raise
        fix = "lower compress.calibration_rows and compress.calibration_batch_size, or use a machine with more"
        raise UserError("there is too little memory for this step", fix=fix) from error
