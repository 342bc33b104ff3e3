"""Say in one line that memory did not suffice."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from distillkit.errors import UserError

SIGNS = re.compile(
    r"out of memory|not enough memory|(can't|cannot|failed to) allocate memory|bad allocation|std::bad_alloc",
    re.IGNORECASE,
)


@contextmanager
def enough_memory(fix: str) -> Iterator[None]:
    """Turn what Python, PyTorch and ONNX Runtime raise when memory is short into one error.

    Args:
        fix: What needs less.

    Raises:
        UserError: If there is too little memory for what happens inside.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not is_short(error):
            raise
        what = "there is too little memory for this"
        raise UserError(what, fix=f"{fix}, or use a machine with more; the same command goes on from here") from error


def is_short(error: BaseException | None) -> bool:
    """Tell whether memory was short; exporters hide that among the causes of what they raise."""
    if error is None:
        return False
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or SIGNS.search(str(error)):
        return True
    return is_short(error.__cause__)
