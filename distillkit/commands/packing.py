"""Training rows that are packed, if the models and the loss allow it."""

from __future__ import annotations

from dataclasses import replace

from distillkit.data.encode import Encoded
from distillkit.errors import UserError
from distillkit.losses.objective import Objective
from distillkit.models.live import LiveModel
from distillkit.models.packing import check_packing
from distillkit.models.teachers import FrozenModel
from distillkit.signals import Model


def packed(train: Encoded, objective: Objective, student: LiveModel, teacher: Model | None) -> Encoded:
    """Let several texts share a row of each training batch.

    Raises:
        UserError: If a model does not keep them apart, or a term of the loss compares rows.
    """
    rows = replace(train, packed=True)
    batch = rows.batch([0])
    for name, loss in objective.feature_terms.items():
        if loss.mask(batch).ndim == 1:
            what = "it looks at rows as a whole, and a packed row holds several texts"
            raise UserError(what, where=f"loss.terms.{name}", fix="set task.packing=false")
    if teacher is not None and not isinstance(teacher, FrozenModel):
        raise UserError("only a live teacher can answer packed rows", where="task.packing", fix="set it to false")
    for live in [student] if teacher is None else [student, teacher.live]:
        check_packing(live.model)
    return rows
