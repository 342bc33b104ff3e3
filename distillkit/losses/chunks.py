"""The working memory of the vocabulary pass: heads multiplied chunk by chunk, gradients added up.

A chunk is as many items as make matrix products fast. Within it the losses go block by block: as many items as stay
in the processor's cache from one elementwise operation to the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from distillkit.losses.base import LogitLoss
from distillkit.losses.derivatives import differentiate
from distillkit.losses.items import exact
from distillkit.losses.sparse import compare
from distillkit.signals import DenseLogits, HeadLogits, Logits, SparseLogits, chunks

CHUNK = {"cpu": 1 << 24, "cuda": 1 << 27}  # logits
BLOCK = 1 << 18  # logits, for each of at most 8 threads
SLICE = 1 << 14  # rows of the head whose gradient one product in half precision covers


class Pass:
    """One pass over the items of a batch.

    Args:
        student: Hidden states `[items, d]` and head.
        teacher: Logits over the same items, of any kind; None if no term needs them.
        labels: As `Batch.labels`.
        wanted: Whether the gradients of hidden states, weight and bias are wanted.

    Attributes:
        hidden: The gradient of the hidden states, as far as the pass has come; None if not wanted.
        weight: That of the head's weight, added up in float32.
        bias: That of the head's bias, likewise.
        dtype: Of the student's products.
    """

    def __init__(self, student: HeadLogits, teacher: Logits | None, labels: Tensor, wanted: Sequence[bool]) -> None:
        self.hidden = torch.zeros_like(student.hidden) if wanted[0] else None
        self.weight = _zeros(student.weight) if wanted[1] else None
        self.bias = _zeros(student.bias) if wanted[2] and student.bias is not None else None
        self._student, self._labels, self._wanted = _Head(student), labels, any(wanted)
        self.dtype = self._student.head.weight.dtype
        self._teacher = _Head(teacher) if isinstance(teacher, HeadLogits) else teacher
        self._classes = max(student.classes, 0 if teacher is None else teacher.classes)
        self._device = student.hidden.device.type
        if self._device == "cpu":
            _keep_freed_memory()

    def add(self, items: slice | Tensor, losses: Sequence[tuple[LogitLoss, float]]) -> Tensor:
        """Add the gradients of Σ scale · Σ loss over some items; return the sum of each loss `[losses]`."""
        sums = torch.zeros(len(losses), device=self._labels.device)
        with torch.autocast(self._device, enabled=False):
            for start, stop in chunks(len(self._labels[items]), self._classes, CHUNK[self._device]):
                sums = sums + self._chunk(slice(start, stop) if isinstance(items, slice) else items[start:stop], losses)
        return sums

    def _chunk(self, items: slice | Tensor, losses: Sequence[tuple[LogitLoss, float]]) -> Tensor:
        head, product = self._student.head, self._student.multiply(items)
        said = self._ask(items) if any(loss.needs_teacher for loss, _ in losses) else None
        labels, found = self._labels[items], []
        block = BLOCK * min(torch.get_num_threads(), 8) if self._device == "cpu" else len(labels) * self._classes
        for start, stop in chunks(len(labels), self._classes, block):
            part = product[start:stop]
            logits, teacher = head.finish(exact(part)), self._finished(said, start, stop)
            if self._wanted:
                into = part if part.dtype == logits.dtype else None
                values, gradient = differentiate(losses, logits, teacher, labels[start:stop], into)
                part.copy_(head.unfinish(gradient, logits))  # the product becomes its own gradient
            else:
                values = compare([loss for loss, _ in losses], logits, teacher, labels[start:stop])
            found.append(values)
        if self._wanted:
            self._accumulate(items, product)
        return torch.stack([torch.cat(blocks).sum() for blocks in zip(*found, strict=True)])

    def _ask(self, items: slice | Tensor) -> DenseLogits | SparseLogits | None:
        """Return what the teacher says about a chunk; a head's product is not finished yet."""
        if isinstance(self._teacher, _Head):
            return DenseLogits(self._teacher.multiply(items))
        return None if self._teacher is None else self._teacher[items]

    def _finished(
        self, said: DenseLogits | SparseLogits | None, start: int, stop: int
    ) -> DenseLogits | SparseLogits | None:
        """Return what the teacher says about a block of a chunk."""
        if not isinstance(said, DenseLogits):
            return None if said is None else said[slice(start, stop)]
        values = exact(said.rows(start, stop))
        return DenseLogits(self._teacher.head.finish(values) if isinstance(self._teacher, _Head) else values)

    def _accumulate(self, items: slice | Tensor, gradient: Tensor) -> None:
        """Add what the gradient of a chunk's product `[chunk, vocab]` means for hidden states, weight and bias."""
        head = self._student.head
        if self.hidden is not None:
            self.hidden[items] = (gradient @ head.weight).to(self.hidden.dtype)
        if self.weight is not None:
            _add_product(self.weight, gradient, head.hidden[items])
        if self.bias is not None:
            self.bias += gradient.sum(dim=0, dtype=self.bias.dtype)


class _Head:
    """A head in the precision of its products, with memory for those of a chunk."""

    def __init__(self, head: HeadLogits) -> None:
        kind = head.hidden.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else head.weight.dtype
        bias = None if head.bias is None else head.bias.to(dtype)
        self.head = replace(head, hidden=head.hidden.to(dtype), weight=head.weight.to(dtype), bias=bias)
        self._memory = self.head.hidden.new_empty(0, head.classes)

    def multiply(self, items: slice | Tensor) -> Tensor:
        """Return the product `[chunk, vocab]`; the next call overwrites it."""
        states, weight, bias = self.head.hidden[items], self.head.weight.T, self.head.bias
        if len(states) > len(self._memory):
            self._memory = states.new_empty(len(states), self.head.classes)
        product = self._memory[: len(states)]
        return torch.mm(states, weight, out=product) if bias is None else torch.addmm(bias, states, weight, out=product)


def _add_product(total: Tensor, gradient: Tensor, states: Tensor) -> None:
    """Add gradientᵀ states to a total `[vocab, d]` without a temporary of its size."""
    if states.dtype == total.dtype:
        total.addmm_(gradient.T, states)
        return
    for start in range(0, len(total), SLICE):
        total[start : start + SLICE] += gradient[:, start : start + SLICE].T @ states


def _keep_freed_memory() -> None:
    """Let a block's tensors reuse what the last block's freed, without a page fault for every 4 KiB.

    The GNU C library hands freed memory back to the system beyond twice the largest piece that was ever mapped and
    freed, counting pieces up to 32 MiB. So map and free one of these; nothing touches it, and it costs nothing.
    """
    torch.empty(31 << 20, dtype=torch.uint8)


def _zeros(like: Tensor) -> Tensor:
    """Return zeros of a tensor's shape in float32, or in float64 if it is."""
    return torch.zeros_like(like, dtype=torch.promote_types(like.dtype, torch.float32))
