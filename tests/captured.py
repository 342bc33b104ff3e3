"""Features made up for losses on features, and what must hold for every such loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from distillkit.features import ModelShape
from distillkit.losses.base import FeatureLoss
from distillkit.signals import Batch, Signal

LENGTHS = (3, 5, 1, 4)
Features = dict[str, np.ndarray]  # one row's, without padding: [length, width], [heads, length, width] or [width]


def shape(
    depth: int = 2, heads: int = 2, head_width: int = 3, groups: int | None = None, causal: bool = False
) -> ModelShape:
    return ModelShape(depth, heads * head_width, heads, groups or heads, head_width, causal)


@dataclass(frozen=True)
class Case:
    """A loss, and its sum over a batch written out: (student's rows, teacher's rows, loss) → value."""

    make: Callable[[], FeatureLoss]
    formula: Callable[[list[Features], list[Features], FeatureLoss], float]
    student: ModelShape = field(default_factory=lambda: shape(2))
    teacher: ModelShape = field(default_factory=lambda: shape(4))
    zero: bool = True  # for identical models
    between_rows: bool = False  # by definition about the rows of a batch

    def bound(self) -> FeatureLoss:
        torch.manual_seed(1)
        loss = self.make()
        loss.bind(self.student, self.teacher)
        return loss.double()


def batch(lengths: tuple[int, ...] = LENGTHS, length: int | None = None, left: bool = False) -> Batch:
    length = length or max(lengths)
    mask = torch.tensor([[1] * n + [0] * (length - n) for n in lengths])
    return batch_of({"attention_mask": mask.flip(1) if left else mask}, len(lengths))


def batch_of(inputs: dict[str, Tensor], rows: int, real: bool = True) -> Batch:
    every = torch.ones(rows, dtype=torch.bool)
    return Batch(inputs, every, torch.zeros(rows, dtype=torch.int64), every, real=real)


def rows_of(names: frozenset[str], model: ModelShape, seed: int, lengths: tuple[int, ...] = LENGTHS) -> list[Features]:
    """Make features of every row; modules called "…row" give one vector a row."""
    random = np.random.default_rng(seed)

    def make(name: str, length: int) -> np.ndarray:
        if name.endswith(".query"):
            return random.standard_normal((model.heads, length, model.head_width))
        if name.endswith((".key", ".value")):
            return random.standard_normal((model.key_value_heads, length, model.head_width))
        return random.standard_normal(model.width if name.endswith("row") else (length, model.width))

    return [{name: make(name, length) for name in sorted(names)} for length in lengths]


def signal(rows: list[Features], length: int | None = None, left: bool = False, garbage: float | None = None) -> Signal:
    """Pad the rows' features with noise or one value."""
    length = length or max(_length(row) for row in rows)
    return Signal(
        features={
            name: torch.stack([_padded(row[name], length, left, garbage) for row in rows]).double() for name in rows[0]
        }
    )


def _length(row: Features) -> int:
    return max((value.shape[-2] for value in row.values() if value.ndim > 1), default=0)


def _padded(value: np.ndarray, length: int, left: bool, garbage: float | None) -> Tensor:
    if value.ndim == 1:
        return torch.from_numpy(value)
    padding = torch.randn(*value.shape[:-2], length - value.shape[-2], value.shape[-1], dtype=torch.float64)
    padding = padding if garbage is None else torch.full_like(padding, garbage)
    parts = [torch.from_numpy(value), padding]
    return torch.cat(parts[::-1] if left else parts, dim=-2)


def leaves(said: Signal) -> Signal:
    return Signal(features={name: value.detach().clone().requires_grad_() for name, value in said.features.items()})


def to(said: Signal, dtype: torch.dtype) -> Signal:
    return Signal(features={name: value.to(dtype) for name, value in said.features.items()})


def made(case: Case, loss: FeatureLoss) -> tuple[list[Features], list[Features]]:
    return rows_of(loss.student_features, case.student, 1), rows_of(loss.teacher_features, case.teacher, 2)


def weights(loss: FeatureLoss, index: int) -> tuple[np.ndarray, np.ndarray | float] | None:
    """The matrix and bias of a projector, if there is one."""
    project = loss.projectors[index]
    if isinstance(project, torch.nn.Identity):
        return None
    bias = project.bias
    return project.weight.detach().numpy(), 0.0 if bias is None else bias.detach().numpy()


def close(actual: Tensor, expected: float, tolerance: float) -> None:
    assert abs(actual.item() - expected) <= tolerance * max(1.0, abs(expected)), (actual.item(), expected)


def check_value(case: Case) -> None:
    """The formula's value, in float64, float32 and for bfloat16 features."""
    loss = case.bound()
    student, teacher = made(case, loss)
    expected = case.formula(student, teacher, loss)
    close(loss(signal(student), signal(teacher), batch()), expected, 1e-12)
    value = loss.float()(to(signal(student), torch.float32), to(signal(teacher), torch.float32), batch())
    assert value.dtype == torch.float32
    close(value, expected, 1e-6)
    rounded = [[{n: _round(v) for n, v in row.items()} for row in rows] for rows in (student, teacher)]
    expected = case.formula(*rounded, loss.double())
    close(loss.float()(*(to(signal(rows), torch.bfloat16) for rows in rounded), batch()), expected, 1e-3)


def _round(value: np.ndarray) -> np.ndarray:
    return torch.from_numpy(value).bfloat16().double().numpy()


def check_gradient(case: Case) -> None:
    """Those of finite differences, also for the loss's own parameters; padding gets exactly none, nor the teacher."""
    loss = case.bound()
    student, teacher = (signal(rows) for rows in made(case, loss))
    names, own = list(student.features), list(loss.parameters())

    def value(*tensors: Tensor) -> Tensor:
        features = dict(zip(names, tensors, strict=False))
        return loss(Signal(features=features), teacher, batch())

    inputs = [value.requires_grad_() for value in student.features.values()]
    assert torch.autograd.gradcheck(value, (*inputs, *own), fast_mode=True)
    ours, theirs = leaves(student), leaves(teacher)
    loss(ours, theirs, batch()).backward()
    assert all(value.grad is None for value in theirs.features.values())
    tokens = batch().inputs["attention_mask"].bool()
    for feature in ours.features.values():
        assert (feature.grad != 0).any()
        if feature.ndim > 2:
            assert (feature.grad.movedim(-2, 1)[~tokens] == 0).all()


def check_padding(case: Case) -> None:
    """64 more positions of anything, on either side, change nothing; nor does NaN there."""
    loss = case.bound()
    student, teacher = made(case, loss)
    plain = leaves(signal(student))
    expected = loss(plain, signal(teacher), batch())
    expected.backward()
    expected = expected.item()
    for left in (False, True):
        for garbage in (None, 1e4, -1e4, float("nan")):
            ours = leaves(signal(student, 69, left, garbage))
            wide = batch(length=69, left=left)
            value = loss(ours, signal(teacher, 69, left, garbage), wide)
            value.backward()
            close(value, expected, 1e-12)
            tokens, few = wide.inputs["attention_mask"].bool(), batch().inputs["attention_mask"].bool()
            for name, feature in ours.features.items():
                gradient, other = feature.grad, plain.features[name].grad
                if feature.ndim > 2:
                    assert (gradient.movedim(-2, 1)[~tokens] == 0).all()
                    gradient, other = gradient.movedim(-2, 1)[tokens], other.movedim(-2, 1)[few]
                torch.testing.assert_close(gradient, other, rtol=1e-12, atol=1e-12)


def check_items(case: Case) -> None:
    """A row's share does not depend on other rows, and the mask counts what is summed."""
    loss = case.bound()
    student, teacher = made(case, loss)
    counted = loss.mask(batch())
    assert counted.dtype == torch.bool
    assert counted.shape in ((4,), (4, 5))
    assert counted.sum() in (4, sum(LENGTHS))
    if not case.between_rows:
        alone = [
            loss(signal([ours]), signal([theirs]), batch((length,)))
            for ours, theirs, length in zip(student, teacher, LENGTHS, strict=True)
        ]
        close(loss(signal(student), signal(teacher), batch()), sum(value.item() for value in alone), 1e-12)


def check_identical(case: Case) -> None:
    """A model and itself: no loss and no gradient."""
    if not case.zero:
        return
    loss = case.make()
    loss.bind(case.student, case.student)
    rows = rows_of(loss.student_features | loss.teacher_features, case.student, 1)
    for dtype in (torch.float32, torch.float64):
        ours = leaves(to(signal(rows), dtype))
        value = loss(ours, to(signal(rows), dtype), batch())
        assert abs(value) < 1e-6
        value.backward()
        assert all(
            feature.grad.abs().max() < 1e-6 for name, feature in ours.features.items() if feature.grad is not None
        )


CHECKS = [check_value, check_gradient, check_padding, check_items, check_identical]
