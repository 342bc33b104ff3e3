"""Too little memory: the micro-batch that fits, and what takes the space where none does."""

from __future__ import annotations

import gc
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import ceil

import torch
from accelerate import Accelerator
from torch import nn

from distillkit.errors import UserError
from distillkit.models.teachers import FrozenModel
from distillkit.signals import Batch, Model
from distillkit.training.sharding import own_bytes

CPU_SAYS = "can't allocate memory"


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether torch (or Python) got no more memory."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or CPU_SAYS in str(error)


def largest_fitting(size: int, run: Callable[[int], None], accelerator: Accelerator) -> int:
    """Return the largest micro-batch of `size`, ⌈size / 2⌉, … rows with which every process has enough memory.

    Args:
        size: Rows to begin with.
        run: Does with so many rows what takes the most memory; only one row may run out of it.
        accelerator: Of the processes, which try together.
    """
    while size > 1 and not _fits(size, run, accelerator):
        size = ceil(size / 2)
    return size


def _fits(size: int, run: Callable[[int], None], accelerator: Accelerator) -> bool:
    short = False
    try:
        run(size)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        short = True
    gc.collect()  # what the failed attempt left behind
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    failures = accelerator.reduce(torch.tensor([float(short)], device=accelerator.device), reduction="sum")
    return failures.item() == 0


@contextmanager
def explained(trainee: nn.Module, teacher: Model | None, batch: Batch) -> Iterator[None]:
    """Where memory runs out inside, say what takes it and what would take less.

    Args:
        trainee: What is trained.
        teacher: What answers beside it, if anything does.
        batch: What is computed.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        rows = len(batch.counted)
        of = f" of {batch.inputs['input_ids'].shape[1]} tokens" if "input_ids" in batch.inputs else ""
        fix = f"train.micro_batch_size={max(1, rows // 2)} or train.auto_batch=true (the result stays the same), "
        fix += "train.precision=bf16, or a smaller task.max_length"
        raise UserError(
            f"out of memory on {rows} rows{of}: {_parts(trainee, teacher)}", where="train", fix=fix
        ) from error


def _parts(trainee: nn.Module, teacher: Model | None) -> str:
    weights = _bytes(trainee)
    trained = sum(own_bytes(parameter) for parameter in trainee.parameters() if parameter.requires_grad)
    parts = {"student": weights, "gradients": trained, "optimiser": 2 * trained}
    if isinstance(teacher, FrozenModel):
        parts["teacher"] = _bytes(teacher.live)
    device = next(trainee.parameters()).device
    if device.type == "cuda":
        peak, total = torch.cuda.max_memory_allocated(device), torch.cuda.get_device_properties(device).total_memory
        parts["activations and vocabulary at least"] = max(0, peak - sum(parts.values()))
        end = f" of {total / 2**20:,.0f}"
    else:
        end = f"; the process took {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10:,.0f} at most"
    return ", ".join(f"{name} {size / 2**20:,.0f}" for name, size in parts.items()) + f" MiB{end}"


def _bytes(module: nn.Module) -> int:
    return sum(own_bytes(parameter) for parameter in module.parameters())
