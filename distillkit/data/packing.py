"""Packing: several texts share a row of a batch, and none of them sees another; there is hardly any padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from distillkit.signals import Batch, Signal


def pack(batch: Batch) -> Batch:
    """Put the texts of a padded batch into fewer rows, as long as the longest text.

    The items stay the same, in another order. The position ids begin anew with each text, and there is no attention
    mask: that is how transformers tells the texts of a row apart (`distillkit.models.packing` checks that it does).

    Args:
        batch: Of a causal language model, padded on the right.
    """
    mask = batch.inputs["attention_mask"]
    lengths = mask.sum(dim=1)
    capacity = int(lengths.max())
    shares = fill(lengths.tolist(), capacity)
    # Where each token comes from, text by text, and where it goes, `[tokens]` each.
    text = torch.tensor([index for share in shares for index in share])
    sizes = lengths[text]
    from_row = text.repeat_interleave(sizes)
    from_place = _count_up(sizes)
    of_share = torch.tensor([len(share) for share in shares])
    to_row = torch.arange(len(shares)).repeat_interleave(of_share).repeat_interleave(sizes)
    to_place = _count_up(torch.bincount(to_row))
    shape = (len(shares), capacity)

    def moved(values: torch.Tensor, padding: int) -> torch.Tensor:
        target = torch.full(shape, padding, dtype=values.dtype)
        target[to_row, to_place] = values
        return target

    items = torch.full(batch.counted.shape, -1)
    items[batch.counted] = torch.arange(len(batch.labels))
    items = moved(items[from_row, from_place], -1)
    counted = items >= 0
    order = items[counted]
    return replace(
        batch,
        inputs={
            "input_ids": moved(batch.inputs["input_ids"][from_row, from_place], 0),
            "position_ids": moved(from_place, 0),
        },
        counted=counted,
        labels=batch.labels[order],
        taught=batch.taught[order],
        said=None if batch.said is None else _reordered(batch.said, order),
        segments=moved(from_row, -1),
    )


def _reordered(said: Signal, items: torch.Tensor) -> Signal:
    return Signal(None if said.logits is None else said.logits[items])


def fill(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Share texts out over as few rows as first fit, decreasing finds: the texts of each row by their index.

    Args:
        lengths: Of the texts, none above the capacity.
        capacity: Of a row.
    """
    shares: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        place = next((row for row, free in enumerate(room) if free >= lengths[index]), len(room))
        if place == len(room):
            shares.append([])
            room.append(capacity)
        shares[place].append(index)
        room[place] -= lengths[index]
    return shares


def _count_up(sizes: torch.Tensor) -> torch.Tensor:
    """Return 0 … size − 1 for each size, one after the other."""
    starts = (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    return torch.arange(int(sizes.sum())) - starts
