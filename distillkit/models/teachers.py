"""Teachers: a live model, outputs that were recorded with the rows, or a store of them."""

from __future__ import annotations

from dataclasses import replace

import torch

from distillkit.errors import UserError
from distillkit.models.cached import CachedTeacher
from distillkit.models.live import LiveModel
from distillkit.models.load import load_live, pick_dtype
from distillkit.signals import LOGITS, Batch, DenseLogits, HeadLogits, Logits, Model, Signal, Wanted
from distillkit.tasks.base import Task


class FrozenModel:
    """A live model that only answers what is wanted: no gradients, no dropout.

    Args:
        live: The model; its weights are frozen.
        wanted: What every answer shall have.
    """

    def __init__(self, live: LiveModel, wanted: Wanted = LOGITS) -> None:
        self.live = live.eval().requires_grad_(False)
        self.wanted = wanted
        self.sharded = False  # what other processes hold of it is fetched while it answers

    def __call__(self, batch: Batch) -> Signal:
        """Answer a batch."""
        with torch.no_grad() if self.sharded else torch.inference_mode():
            signal = self.live(batch, self.wanted)
        return Signal(_usable(signal.logits), {name: tensor.clone() for name, tensor in signal.features.items()})


def _usable(logits: Logits | None) -> Logits | None:
    """Copy what inference mode made, which autograd refuses to keep for the student's backward pass."""
    if isinstance(logits, HeadLogits):
        weight = logits.weight.clone() if logits.weight.is_inference() else logits.weight
        return replace(logits, hidden=logits.hidden.clone(), weight=weight)
    return DenseLogits(logits.values.clone()) if isinstance(logits, DenseLogits) else logits


class LiveTeacher:
    """Ask a transformers model at every step.

    Args:
        path: Folder or hub id of the trained teacher.
        dtype: Of its weights: float32, bfloat16 or float16.
        shard: While training in several processes, each keeps a share of every layer and fetches the rest while the
            layer computes; embeddings and head stay whole.
    """

    def __init__(self, path: str, dtype: str = "float32", shard: bool = False) -> None:
        pick_dtype(dtype, "teacher.dtype")
        self.path = path
        self.dtype = dtype
        self.shard = shard

    def load(self, task: Task, labels: list[str] | None, trained: bool = True) -> LiveModel:
        """Load the weights; the class names must be those of the data. `trained`: the head is needed."""
        return load_live(self.path, task, "teacher.path", labels, trained=trained, dtype=self.dtype)


UNNAMED = "recorded with the rows"


class RecordedTeacher:
    """Answer with the `teacher_logits` that came with the rows, as `generate-pseudo` writes them.

    Args:
        path: Which model it was: for reports and model cards, and for a student that is made of its layers.
    """

    def __init__(self, path: str = UNNAMED) -> None:
        self.path = path

    @property
    def named(self) -> bool:
        """Whether it is known which model it was."""
        return self.path != UNNAMED

    @property
    def origin(self) -> tuple[str, str]:
        """Return the model's path and the dtype of its weights."""
        return self.path, "float32"

    def check(self, task: Task) -> None:
        """Refuse a task whose rows carry no logits."""
        if not task.soft_labels:
            raise UserError(f"{task.name} has no recorded soft labels", where="teacher", fix="use teacher=live")

    def load(self, task: Task, labels: list[str] | None) -> Model:  # noqa: ARG002
        """Return the teacher; there is nothing to load."""
        self.check(task)
        return recorded_signal


def recorded_signal(batch: Batch) -> Signal:
    """Return the logits that came with the batch."""
    if batch.recorded is None:
        raise UserError(
            "the rows carry no teacher_logits", where="dataset.columns", fix="make them with distillkit generate-pseudo"
        )
    return Signal(DenseLogits(batch.recorded))


Teacher = LiveTeacher | RecordedTeacher | CachedTeacher
