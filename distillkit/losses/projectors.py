"""Trainable maps from the student's width to the teacher's: part of the objective, never of the student."""

from __future__ import annotations

from typing import Literal

from torch import nn
from torch.nn.utils.parametrizations import orthogonal

from distillkit.errors import UserError

Projector = Literal["linear", "orthogonal"]


def projector(kind: Projector | None, student: int, teacher: int) -> nn.Module:
    """Return what maps student's features `[…, student]` to `[…, teacher]`: the identity where the widths agree.

    Args:
        kind: "linear" (with bias); "orthogonal" (no bias; W `[teacher, student]` with Wᵀ W = 1, or W Wᵀ = 1 if the
            student is wider, at every step); or None to refuse unequal widths.
        student: Width of the student's features.
        teacher: Width of the teacher's.
    """
    if student == teacher:
        return nn.Identity()
    if kind is None:
        fix = "set projector: linear or orthogonal"
        raise UserError(f"the student is {student} wide and the teacher {teacher}", where="projector", fix=fix)
    if kind == "orthogonal":
        # torch's choice for rectangles, "householder", takes seconds a step and turns to zero under weight decay.
        return orthogonal(nn.Linear(student, teacher, bias=False), orthogonal_map="cayley")
    return nn.Linear(student, teacher)
