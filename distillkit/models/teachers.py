"""Teachers: a live model, or outputs that were recorded with the rows."""

from __future__ import annotations

import torch

from distillkit.errors import UserError
from distillkit.models.live import LiveModel
from distillkit.models.load import load_live, pick_dtype
from distillkit.signals import Batch, DenseLogits, Model, Signal
from distillkit.tasks.base import Task


class FrozenModel:
    """A live model that only answers: no gradients, no dropout.

    Args:
        live: The model; its weights are frozen.
    """

    def __init__(self, live: LiveModel) -> None:
        self.live = live.eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Signal:
        """Answer a batch."""
        return self.live(batch)


class LiveTeacher:
    """Ask a transformers model at every step.

    Args:
        path: Folder or hub id of the trained teacher.
        dtype: Of its weights: float32, bfloat16 or float16.
    """

    def __init__(self, path: str, dtype: str = "float32") -> None:
        pick_dtype(dtype, "teacher.dtype")
        self.path = path
        self.dtype = dtype

    def load(self, task: Task, labels: list[str] | None) -> LiveModel:
        """Load the weights; the class names must be those of the data."""
        return load_live(self.path, task, "teacher.path", labels, trained=True, dtype=self.dtype)


class RecordedTeacher:
    """Answer with the `teacher_logits` that came with the rows, as `generate-pseudo` writes them.

    Args:
        path: Which model it was, for reports and model cards.
    """

    def __init__(self, path: str = "recorded with the rows") -> None:
        self.path = path

    def load(self, task: Task, labels: list[str] | None) -> Model:  # noqa: ARG002
        """Return the teacher; there is nothing to load."""
        if not task.has_classes:
            raise UserError(f"{task.name} has no recorded soft labels", where="teacher", fix="use teacher=live")
        return recorded_signal


def recorded_signal(batch: Batch) -> Signal:
    """Return the logits that came with the batch."""
    if batch.recorded is None:
        raise UserError(
            "the rows carry no teacher_logits", where="dataset.columns", fix="make them with distillkit generate-pseudo"
        )
    return Signal(DenseLogits(batch.recorded))


Teacher = LiveTeacher | RecordedTeacher
