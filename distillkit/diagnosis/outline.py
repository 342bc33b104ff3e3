"""Outlines of models: fake tensors that have shapes and no values, so that no weights are loaded or held."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from distillkit.data.rows import Rows
from distillkit.models.live import LiveModel
from distillkit.models.load import load_config, load_processor, pick_dtype
from distillkit.models.students import Pretrained, Student
from distillkit.models.teachers import LiveTeacher
from distillkit.signals import Batch
from distillkit.tasks.base import Task


class Outlines:
    """Make outlines on one device; those that belong together must come from the same object.

    Args:
        device: Where the models would be; need not be there.

    Attributes:
        made: Folder → outline of the model that an earlier stage will write there.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.mode = FakeTensorMode()
        self.made: dict[str, LiveModel] = {}

    @contextmanager
    def faking(self) -> Iterator[None]:
        """Make every new tensor a fake one on the device."""
        with self.mode, self.device:
            yield

    def teacher(self, teacher: LiveTeacher, task: Task, labels: list[str] | None) -> LiveModel:
        """Outline a teacher from its config."""
        return self._of_path(teacher.path, task, labels, True, "teacher.path", pick_dtype(teacher.dtype, "dtype"))

    def student(
        self, student: Student, task: Task, labels: list[str] | None, rows: Rows, teacher: LiveModel | None
    ) -> LiveModel:
        """Outline a student, which has float32 weights."""
        if isinstance(student, Pretrained):
            return self._of_path(student.path, task, labels, not task.adds_head, "student.path", torch.float32)
        with self.faking():
            return student.build(task, labels, rows, teacher)

    def batch(self, batch: Batch) -> Batch:
        """Turn a batch into fake tensors of the same shapes."""
        with self.faking():
            return Batch(
                inputs={name: _like(tensor) for name, tensor in batch.inputs.items()},
                counted=_like(batch.counted),
                labels=_like(batch.labels),
                taught=_like(batch.taught),
                segments=None if batch.segments is None else _like(batch.segments),
            )

    def _of_path(
        self, path: str, task: Task, labels: list[str] | None, trained: bool, key: str, dtype: torch.dtype
    ) -> LiveModel:
        if path in self.made:
            return self.made[path]
        config = load_config(path, key)
        task.prepare(config, labels, trained, key)
        processor = load_processor(path, task, key)
        with self.faking():
            return LiveModel(task.auto_class().from_config(config, dtype=dtype), processor, task)


def _like(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype)


class Selection(TorchFunctionMode):
    """Let one fake mask select as many entries as a real one would: what it holds is not known, but how many is.

    Args:
        mask: Fake, bool, of any shape.
        count: How many entries of it are true.
    """

    def __init__(self, mask: Tensor, count: int) -> None:
        super().__init__()
        self.mask = mask
        self.count = count

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Replace the mask by as many indices into each of its dimensions."""
        if func is Tensor.__getitem__ and args[1] is self.mask:
            index = torch.zeros(self.count, dtype=torch.int64, device=self.mask.device)
            return args[0][(index,) * self.mask.ndim]
        return func(*args, **(kwargs or {}))
