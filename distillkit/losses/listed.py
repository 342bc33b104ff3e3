"""The derivative of losses that are linear in the teacher's probabilities, where it lists only some classes.

They pull at the student's probability of a class as strongly as the teacher's probability of it, p. In the bucket of
all others, whose probabilities are P and Q, that is P q/Q; and since a multiple of q in all classes changes nothing, it
is p − q P/Q at the listed classes and nothing elsewhere. So nothing as wide as the vocabulary is made but the student's
softmax, which the hard labels need as well.
"""

from __future__ import annotations

import torch
from torch import Tensor

from distillkit.losses.derivatives import Block
from distillkit.losses.shared import floored
from distillkit.losses.sparse import lump, within
from distillkit.signals import ABSENT, SparseLogits

LEAST = 1e-30  # share of the student's probability: below it the bucket needs a maximum of its own
MOST = 16.0  # P/Q: beyond it q P/Q is so much larger than the gradient that too few digits are left


def derive_listed(
    block: Block, teacher: SparseLogits, temperature: float, scale: float
) -> tuple[Tensor, Tensor] | None:
    """Add scale times the pull to the block; return log-probabilities of teacher and student `[items, k + 1]`.

    Args:
        block: Of the student.
        teacher: About the same items.
        temperature: Of the loss.
        scale: Of the gradient.

    Returns:
        In buckets. None, and nothing is added, where the student leaves too little to the bucket.
    """
    classes = min(block.student.shape[-1], teacher.classes)
    student = block.softened(classes, temperature)
    ids, there = within(teacher, classes)
    log_p = _log_p(teacher, there, classes, temperature).to(block.student.dtype)
    p, listed = log_p.exp(), student.powers.gather(-1, ids) * there
    # To subtract what is listed from the whole would lose digits, and x − x + x is exact.
    student.powers.scatter_add_(-1, ids, -listed)
    others = student.powers.sum(dim=-1, keepdim=True) / student.total
    ratio = p[:, -1:] / others
    spread = student.powers * (ratio / student.total) if (ratio > MOST).any() else None
    student.powers.scatter_add_(-1, ids, listed)
    if (others < LEAST).any():
        return None
    if spread is None:
        student.add_at(ids, p[:, :-1] - listed / student.total * ratio, scale)
    else:
        student.add(spread, scale)
        student.add_at(ids, p[:, :-1], scale)
    return floored(log_p), torch.cat([student.shifted.gather(-1, ids) - student.log_total, others.log()], dim=-1)


def _log_p(teacher: SparseLogits, there: Tensor, classes: int, temperature: float) -> Tensor:
    """Return the teacher's log-probabilities in buckets `[items, k + 1]` at a temperature."""
    theirs = (teacher.temperature * teacher.log_probs).where(there, ABSENT)
    other = lump(teacher, there, classes, temperature).unsqueeze(-1)
    return (torch.cat([theirs, other.to(theirs.dtype)], dim=-1) / temperature).log_softmax(dim=-1)
