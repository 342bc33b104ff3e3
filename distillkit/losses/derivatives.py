"""Value and gradient of logit losses on a few items, by hand where a loss knows its derivative.

Losses at one temperature share the softmax of each model, which is most of their work. The others go by autograd.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeGuard

import torch
from torch import Tensor
from torch.linalg import vecdot

from distillkit.losses.base import LogitLoss
from distillkit.losses.shared import TaughtLoss, floored
from distillkit.losses.sparse import compare
from distillkit.signals import DenseLogits, SparseLogits


def differentiate(
    terms: Sequence[tuple[LogitLoss, float]],
    student: Tensor,
    teacher: DenseLogits | SparseLogits | None,
    labels: Tensor,
    out: Tensor | None = None,
) -> tuple[list[Tensor], Tensor]:
    """Return each loss of each item, and the gradient of Σ scale · Σ loss.

    Args:
        terms: Losses that count every one of these items, and their scales.
        student: float32 logits `[items, classes]`.
        teacher: About the same items; None if no loss needs it.
        labels: As `Batch.labels`, of these items.
        out: Where to put the gradient; may be the student's logits.

    Returns:
        A value `[items]` of each term; and the gradient `[items, classes]` with respect to the student's logits.
    """
    block = Block(student, teacher.values.to(student.dtype) if isinstance(teacher, DenseLogits) else None, labels)
    values: dict[int, Tensor] = {}
    others = []
    for index, (loss, scale) in enumerate(terms):
        if derives(loss) and (block.teacher is not None or not loss.needs_teacher):
            values[index] = loss.derive(block, scale)
        elif isinstance(teacher, SparseLogits) and takes_lists(loss):
            value = loss.derive_listed(block, teacher, scale)
            if value is not None:
                values[index] = value
        if index not in values:
            others.append(index)
    if others:
        leaf = student.detach().requires_grad_()
        with torch.enable_grad():
            found = compare([terms[index][0] for index in others], leaf, teacher, labels)
            total = torch.stack([terms[index][1] * value.sum() for index, value in zip(others, found, strict=True)])
            block.add(torch.autograd.grad(total.sum(), leaf)[0])
        values |= {index: value.detach() for index, value in zip(others, found, strict=True)}
    gradient = block.gradient(torch.empty_like(student) if out is None else out)
    return [values[index] for index in range(len(terms))], gradient


class Softmax:
    """softmax(z / T) of logits `[items, classes]`, in parts: a pass over memory that nobody asks for is not made.

    Attributes:
        shifted: z / T less its maximum.
        powers: Their exponentials; probabilities are powers / total.
        total: Σ powers `[items, 1]`.
        log_total: Its logarithm; log-probabilities are shifted − log_total.
    """

    def __init__(self, logits: Tensor, temperature: float) -> None:
        self.shifted = logits - logits.amax(dim=-1, keepdim=True)
        if temperature != 1:
            self.shifted.div_(temperature)
        self.powers = self.shifted.exp()
        self.total = self.powers.sum(dim=-1, keepdim=True)
        self.log_total = self.total.log()
        self._normalised = False

    @property
    def probabilities(self) -> Tensor:
        """`[items, classes]`; not to be changed."""
        if not self._normalised:
            self.powers.div_(self.total)
            self.total = torch.ones_like(self.total)
            self._normalised = True
        return self.powers

    def mean(self, values: Tensor) -> Tensor:
        """Return Σ probability · value `[items]`."""
        return vecdot(self.powers, values) / self.total.squeeze(-1)


class Student(Softmax):
    """The student's q, and the pull of the losses on it: u = −∂ loss / ∂ log q `[items, classes]`.

    ∂ log qᵢ / ∂ zⱼ = (δᵢⱼ − qⱼ) / T, so that the gradient of a loss is (q Σ u − u) / T. Where u is a distribution, such
    as the teacher's p in forward KL or the label in cross-entropy, that is the well-known (q − u) / T.
    """

    def __init__(self, logits: Tensor, temperature: float) -> None:
        super().__init__(logits, temperature)
        self._temperature = temperature
        self._pulls: list[tuple[Tensor | Softmax, float]] = []  # each with its weight
        self._points: list[tuple[Tensor, Tensor]] = []  # single classes, and what pulls there
        self._sum = torch.zeros_like(self.total)  # Σ u

    def add(self, pull: Tensor | Softmax, scale: float) -> None:
        """Add scale · pull: `[items, classes]`, which may leave out any multiple of q, or the teacher's softmax."""
        weight = scale / self._temperature
        self._pulls.append((pull, weight))
        self._sum += weight if isinstance(pull, Softmax) else weight * pull.sum(dim=-1, keepdim=True)

    def add_at(self, classes: Tensor, pull: Tensor, scale: float) -> None:
        """Add scale · pull `[items, n]` at some classes `[items, n]` of each item."""
        pull = pull * (scale / self._temperature)
        self._points.append((classes, pull))
        self._sum += pull.sum(dim=-1, keepdim=True)

    def gradient(self, out: Tensor | None = None) -> Tensor:
        """Return the gradient with respect to the logits `[items, classes]`."""
        gradient = torch.mul(self.powers, self._sum / self.total, out=out)
        for pull, weight in self._pulls:
            if isinstance(pull, Softmax):
                gradient.addcmul_(pull.powers, -weight / pull.total)
            else:
                gradient.sub_(pull, alpha=weight)
        for classes, point in self._points:
            gradient.scatter_add_(-1, classes, -point)
        return gradient


class Pair:
    """Teacher's p and student's q at one temperature, over the classes that both have."""

    def __init__(self, teacher: Softmax, student: Student) -> None:
        self.teacher, self.student = teacher, student
        self._difference = teacher.shifted.sub_(student.shifted)
        self._offset = student.log_total - teacher.log_total
        self._finished = False

    @property
    def p(self) -> Tensor:
        """The teacher's probabilities `[items, classes]`; not to be changed."""
        return self.teacher.probabilities

    @property
    def q(self) -> Tensor:
        """The student's probabilities `[items, classes]`; not to be changed."""
        return self.student.probabilities

    @property
    def log_ratio(self) -> Tensor:
        """log(p / q) `[items, classes]`; not to be changed."""
        if not self._finished:
            self._difference.add_(self._offset)
            self._offset = torch.zeros_like(self._offset)
            self._finished = True
        return self._difference

    def kl(self) -> Tensor:
        """Return KL(p ‖ q) = Σ p log(p / q) `[items]`."""
        value = self.teacher.mean(self._difference)
        if value.isnan().any():  # 0 · log 0
            value = self.teacher.mean(floored(self._difference))
        return value + self._offset.squeeze(-1)


class Block:
    """The logits of a few items, with what the losses on them share.

    Attributes:
        student: `[items, classes]`.
        teacher: `[items, its classes]`, or None.
        labels: As `Batch.labels`.
    """

    def __init__(self, student: Tensor, teacher: Tensor | None, labels: Tensor) -> None:
        self.student, self.teacher, self.labels = student, teacher, labels
        self._students: dict[tuple[int, float], Student] = {}
        self._pairs: dict[float, Pair] = {}
        self._direct: Tensor | None = None

    def softened(self, classes: int, temperature: float) -> Student:
        """Return the student's softmax over its first classes."""
        key = classes, temperature
        if key not in self._students:
            self._students[key] = Student(self.student[..., :classes], temperature)
        return self._students[key]

    def pair(self, temperature: float) -> Pair:
        """Return both models' softmax over the classes that both have."""
        assert self.teacher is not None
        if temperature not in self._pairs:
            shared = min(self.student.shape[-1], self.teacher.shape[-1])
            teacher = Softmax(self.teacher[..., :shared], temperature)
            self._pairs[temperature] = Pair(teacher, self.softened(shared, temperature))
        return self._pairs[temperature]

    def add(self, gradient: Tensor) -> None:
        """Add to the gradient with respect to the logits `[items, classes]`, or the first of them; uses it up."""
        if self._direct is None and gradient.shape == self.student.shape:
            self._direct = gradient
            return
        if self._direct is None:
            self._direct = torch.zeros_like(self.student)
        self._direct[..., : gradient.shape[-1]] += gradient

    def gradient(self, out: Tensor) -> Tensor:
        """Put the gradient with respect to the logits `[items, classes]` into `out`, which may be the logits."""
        softened = sorted(self._students.items(), reverse=True)
        if self._direct is not None:
            out.copy_(self._direct)
        elif softened[0][0][0] == out.shape[-1]:
            softened.pop(0)[1].gradient(out)
        else:
            out.zero_()
        for (classes, _), student in softened:
            out[..., :classes] += student.gradient()
        return out


class Derived(Protocol):
    """A loss that knows its derivative."""

    needs_teacher: bool

    def derive(self, block: Block, scale: float) -> Tensor:
        """Add scale times the derivative of `per_item` to the block; return the value of each item `[items]`."""
        ...


class Linear(Protocol):
    """A loss that knows its derivative where the teacher lists some classes."""

    def derive_listed(self, block: Block, teacher: SparseLogits, scale: float) -> Tensor | None:
        """Do what `derive` does, or nothing and return None where it cannot."""
        ...


def takes_lists(loss: LogitLoss) -> TypeGuard[Linear]:
    """Tell whether a loss is linear in the teacher's probabilities, and as it was when its derivative was written."""
    return isinstance(loss, TaughtLoss) and loss.linear and derives(loss)


def derives(loss: LogitLoss) -> TypeGuard[Derived]:
    """Tell whether a loss knows the derivative of what it computes: it was not redefined after that was written."""
    for ancestor in type(loss).__mro__:
        if {"derive", "pull"} & vars(ancestor).keys():
            return True
        if {"per_item", "between"} & vars(ancestor).keys():
            return False
    return False
