"""The rows that all processes work on at the moment, side by side."""

from __future__ import annotations

import torch
from torch import Tensor, distributed


def gather(rows: Tensor) -> tuple[Tensor, int]:
    """Put the rows `[any number, width]` of all processes behind each other; no gradient flows back.

    Returns:
        `[rows of all, width]`, and which of them is this process's first.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return rows, 0
    processes, rank = distributed.get_world_size(), distributed.get_rank()
    size = torch.tensor([len(rows)], device=rows.device)
    gathered = [torch.zeros_like(size) for _ in range(processes)]
    distributed.all_gather(gathered, size)
    sizes = torch.cat(gathered).tolist()
    padded = rows.new_zeros(max(sizes), rows.shape[1])
    padded[: len(rows)] = rows
    pieces = [torch.empty_like(padded) for _ in range(processes)]
    distributed.all_gather(pieces, padded)
    return torch.cat([piece[:count] for piece, count in zip(pieces, sizes, strict=True)]), sum(sizes[:rank])
