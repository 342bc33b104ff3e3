"""Cross-entropy and forward KL against float64 written out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from distillkit.errors import UserError
from distillkit.losses.base import LogitLoss
from distillkit.losses.divergences import ForwardKL
from distillkit.losses.objective import Objective
from distillkit.losses.task import BinaryCrossEntropy, CrossEntropy, Regression
from distillkit.signals import IGNORE, Batch, DenseLogits, Signal


def log_softmax(logits: Tensor) -> Tensor:
    """The definition, in float64."""
    logits = logits.double()
    return logits - logits.exp().sum(dim=-1, keepdim=True).log()


def forward_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    log_q, log_p = log_softmax(student.double() / temperature), log_softmax(teacher.double() / temperature)
    return temperature**2 * (log_p.exp() * (log_p - log_q)).sum(dim=-1)


@pytest.fixture
def logits() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (3 * torch.randn(7, 11, generator=generator) for _ in range(2))
    return student, teacher, torch.randint(11, (7,), generator=generator)


def test_cross_entropy_by_hand():
    logits = torch.tensor([[0.0, math.log(3.0)]])
    assert CrossEntropy().per_item(logits, None, torch.tensor([1])).item() == pytest.approx(math.log(4 / 3))


def test_forward_kl_by_hand():
    teacher, student = torch.tensor([[math.log(3.0), 0.0]]), torch.tensor([[0.0, 0.0]])
    expected = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert ForwardKL().per_item(student, teacher, torch.tensor([0])).item() == pytest.approx(expected, rel=1e-6)


def test_cross_entropy_is_that_of_float64(logits):
    student, _, labels = logits
    expected = -log_softmax(student)[torch.arange(7), labels]
    torch.testing.assert_close(CrossEntropy().per_item(student, None, labels).double(), expected, rtol=1e-6, atol=1e-6)


def test_label_smoothing_is_that_of_float64(logits):
    student, _, labels = logits
    target = torch.full((7, 11), 0.1 / 11, dtype=torch.float64)
    target[torch.arange(7), labels] += 0.9
    expected = -(target * log_softmax(student)).sum(dim=-1)
    actual = CrossEntropy(label_smoothing=0.1).per_item(student, None, labels)
    torch.testing.assert_close(actual.double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 8.0])
def test_forward_kl_is_that_of_float64(logits, temperature):
    student, teacher, labels = logits
    actual = ForwardKL(temperature).per_item(student, teacher, labels)
    torch.testing.assert_close(
        actual.double(), forward_kl(student, teacher, temperature), rtol=1e-6, atol=1e-6 * temperature**2
    )


def test_bfloat16_logits(logits):
    student, teacher, labels = (x.bfloat16() if x.is_floating_point() else x for x in logits)
    kl = ForwardKL(2.0).per_item(student.float(), teacher.float(), labels)
    torch.testing.assert_close(kl.double(), forward_kl(student, teacher, 2.0), rtol=1e-3, atol=1e-3)
    ce = CrossEntropy().per_item(student.float(), None, labels)
    torch.testing.assert_close(ce.double(), -log_softmax(student)[torch.arange(7), labels], rtol=1e-3, atol=1e-3)


def test_gradients_are_those_of_finite_differences(logits):
    student, teacher, labels = logits
    student = student.double().requires_grad_()
    labels = labels.clone()
    labels[2] = IGNORE
    assert torch.autograd.gradcheck(lambda x: CrossEntropy(0.1).per_item(x, None, labels), student)
    assert torch.autograd.gradcheck(lambda x: ForwardKL(3.0).per_item(x, teacher.double(), labels), student)
    assert torch.autograd.gradcheck(lambda x: ForwardKL(3.0).per_item(x, teacher.double()[:, :9], labels), student)


def test_the_factor_keeps_the_gradients_size_over_temperatures():
    generator = torch.Generator().manual_seed(0)
    student, teacher = (0.05 * torch.randn(16, 50, generator=generator) for _ in range(2))
    norms = []
    for temperature in range(1, 9):
        leaf = student.clone().requires_grad_()
        ForwardKL(float(temperature)).per_item(leaf, teacher, torch.zeros(16)).sum().backward()
        norms.append(leaf.grad.norm().item())
    assert max(norms) / min(norms) < 1.1


@pytest.mark.parametrize("columns", [(0, 0), (5, 0), (0, 5)])
def test_identical_models_have_no_divergence_also_with_padded_vocabularies(logits, columns):
    logits = logits[0]
    student, teacher = (torch.cat([logits, torch.randn(7, extra)], dim=1) for extra in columns)
    student.requires_grad_()
    loss = ForwardKL(2.0).per_item(student, teacher, torch.zeros(7))
    assert loss.abs().max() < 1e-6
    loss.sum().backward()
    assert student.grad.abs().max() < 1e-6


def test_padding_columns_of_the_student_get_no_gradient(logits):
    student = torch.cat([logits[0], torch.randn(7, 5)], dim=1).requires_grad_()
    ForwardKL(2.0).per_item(student, logits[1], torch.zeros(7)).sum().backward()
    assert (student.grad[:, 11:] == 0).all()
    assert (student.grad[:, :11] != 0).any()


def test_items_without_a_label_cost_nothing(logits):
    student, _, labels = logits
    labels[3] = IGNORE
    student.requires_grad_()
    loss = CrossEntropy().per_item(student, None, labels)
    loss.sum().backward()
    assert loss[3] == 0
    assert (student.grad[3] == 0).all()


def test_which_items_count():
    labels, taught = torch.tensor([1, IGNORE, 0]), torch.tensor([True, True, False])
    batch = Batch({}, torch.ones(3, dtype=torch.bool), labels, taught)
    assert CrossEntropy().mask(batch).tolist() == [True, False, True]
    assert ForwardKL().mask(batch).tolist() == [True, True, False]


@pytest.mark.parametrize("make", [lambda: ForwardKL(0.0), lambda: ForwardKL(float("nan")), lambda: CrossEntropy(1.0)])
def test_impossible_hyper_parameters_are_refused(make):
    with pytest.raises(UserError, match=r"temperature|label_smoothing"):
        make()


NAN = math.nan
SCORES = torch.tensor([[0.5], [-2.0], [NAN], [3.0], [0.0]])
SETS = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [NAN, NAN, NAN], [1.0, 1.0, 1.0], [0.0, 1.0, 0.0]])


def outputs(columns: int) -> Tensor:
    return 3 * torch.randn(5, columns, generator=torch.Generator().manual_seed(0))


def by_definition(loss: LogitLoss, student: Tensor) -> Tensor:
    """Each item's loss in plain float64, zero where nothing is known."""
    if isinstance(loss, Regression):
        return torch.tensor(
            [(z - y) ** 2 if y == y else 0.0 for (z,), (y,) in zip(student.tolist(), SCORES.tolist(), strict=True)]
        )
    values = []
    for row, labels in zip(student.tolist(), SETS.tolist(), strict=True):
        right = [math.log1p(math.exp(-z if y else z)) for z, y in zip(row, labels, strict=True)]
        values.append(math.fsum(right) / len(right) if labels[0] == labels[0] else 0.0)
    return torch.tensor(values)


@pytest.mark.parametrize(("loss", "labels"), [(Regression(), SCORES), (BinaryCrossEntropy(), SETS)])
def test_float_labels(loss, labels):
    student = outputs(labels.shape[1])
    values = loss.per_item(student, None, labels)
    torch.testing.assert_close(values, by_definition(loss, student), rtol=1e-6, atol=1e-6)
    half = student.bfloat16()
    rough = loss.per_item(half.float(), None, labels)
    torch.testing.assert_close(rough, by_definition(loss, half), rtol=1e-3, atol=1e-3)
    leaf = student.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: loss.per_item(z, None, labels), leaf)
    loss.per_item(leaf, None, labels).sum().backward()
    assert (leaf.grad[2] == 0).all()
    assert not loss.needs_teacher
    assert loss.needs_labels
    every_item = torch.ones(5, dtype=torch.bool)
    assert loss.mask(Batch({}, every_item, labels, every_item)).tolist() == [True, True, False, True, True]


def test_scores_may_be_one_number_an_item():
    student, every_item = outputs(1), torch.ones(5, dtype=torch.bool)
    flat = Batch({}, every_item, SCORES[:, 0], every_item)
    assert Regression().mask(flat).tolist() == [True, True, False, True, True]
    flat_values = Regression().per_item(student, None, SCORES[:, 0])
    torch.testing.assert_close(flat_values, Regression().per_item(student, None, SCORES))


@pytest.mark.parametrize(("loss", "labels"), [(Regression(), SCORES), (BinaryCrossEntropy(), SETS)])
def test_an_objective_of_float_labels_averages_over_the_items_that_have_one(loss, labels):
    student, every_item = outputs(labels.shape[1]).requires_grad_(), torch.ones(5, dtype=torch.bool)
    rows, objective = Batch({}, every_item, labels, every_item), Objective({"hard": {"weight": 2.0, "loss": loss}})
    counts = objective.counts(rows)
    assert counts.tolist() == [4.0]
    total, sums = objective(Signal(DenseLogits(student)), None, rows, counts)
    expected = by_definition(loss, student).sum().item()
    assert sums.item() == pytest.approx(expected, rel=1e-6)
    assert total.item() == pytest.approx(2 * expected / 4, rel=1e-6)
    total.backward()
    assert (student.grad[2] == 0).all()
