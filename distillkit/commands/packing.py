"""Training rows that are packed, if the models and the loss allow it."""

from __future__ import annotations

from distillkit.data.plans import TrainingRows
from distillkit.errors import UserError
from distillkit.losses.objective import Objective
from distillkit.models.live import LiveModel
from distillkit.models.packing import check_packing
from distillkit.models.teachers import FrozenModel
from distillkit.signals import Model


def packed(train: TrainingRows, objective: Objective, student: LiveModel, teacher: Model | None) -> TrainingRows:
    """Let several texts share a row of each training batch.

    Raises:
        UserError: If a model does not keep them apart, or a term of the loss compares rows.
    """
    rows = train.packing()
    batch = rows.batch([0])
    for name, loss in objective.feature_terms.items():
        if loss.mask(batch).ndim == 1:
            what = "it looks at rows as a whole, and a packed row holds several texts"
            raise UserError(what, where=f"loss.terms.{name}", fix="set task.packing=false")
    if teacher is not None and not isinstance(teacher, FrozenModel) and (batch.said is None or batch.said.features):
        what = "neither recorded logits nor stored features are those of packed rows"
        raise UserError(what, where="task.packing", fix="set it to false")
    for live in [student, teacher.live] if isinstance(teacher, FrozenModel) else [student]:
        check_packing(live.model)
    return rows
