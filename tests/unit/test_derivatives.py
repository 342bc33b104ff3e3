"""Derivatives that losses know by hand against autograd on their definition, in float64 and in float32."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from distillkit.losses.base import LogitLoss
from distillkit.losses.derivatives import derives, differentiate
from distillkit.losses.divergences import ForwardKL, GeneralizedJSD, ReverseKL
from distillkit.losses.logits import LogitMSE
from distillkit.losses.task import CrossEntropy
from distillkit.signals import ABSENT, IGNORE, DenseLogits
from tests.logit_losses import CLASSES, ITEMS, LABELS, choose, draw, models

HARD = {"hard": lambda: CrossEntropy(), "smoothed": lambda: CrossEntropy(0.1)}


def by_autograd(terms: list[tuple[LogitLoss, float]], student: Tensor, teacher: Tensor | None) -> tuple[list, Tensor]:
    leaf = student.clone().requires_grad_()
    values = [loss.per_item(leaf, teacher, LABELS) for loss, _ in terms]
    total = sum(scale * value.sum() for (_, scale), value in zip(terms, values, strict=True))
    return [value.detach() for value in values], torch.autograd.grad(total, leaf)[0]


def check(terms: list[tuple[LogitLoss, float]], student: Tensor, teacher: Tensor | None, **exactness) -> None:
    before = student.clone()
    said = None if teacher is None else DenseLogits(teacher)
    values, gradient = differentiate(terms, student, said, LABELS)
    expected, reference = by_autograd(terms, student, teacher)
    torch.testing.assert_close(values, expected, **exactness)
    torch.testing.assert_close(gradient, reference, **exactness)
    assert torch.equal(student, before)


EXACT = {"rtol": 1e-9, "atol": 1e-12}
derived = choose(lambda case: derives(case.make(1.0)))


def test_the_common_losses_are_derived_by_hand():
    names = {mark for mark in derived.kwargs["ids"]}
    assert names >= {"forward", "reverse", "soft cross-entropy", "symmetric", "jsd", "skewed forward", "skewed reverse"}
    assert names >= {"total variation", "squared error", "centred squared error", "adaptive"}
    assert all(derives(make()) for make in HARD.values())


@derived
@pytest.mark.parametrize("temperature", [1.0, 2.0, 0.5])
@pytest.mark.parametrize("columns", [(0, 0), (5, 0), (0, 5)], ids=["same width", "wider student", "wider teacher"])
def test_by_hand_is_what_autograd_finds(case, temperature, columns):
    student, teacher = (
        torch.cat([logits, 3 * draw(ITEMS, extra, seed=3)], dim=1).double()
        for logits, extra in zip(models(), columns, strict=True)
    )
    check([(case.make(temperature), 0.7)], student, teacher, **EXACT)


@derived
def test_by_hand_in_float32(case):
    student, teacher = models()
    values, gradient = differentiate([(case.make(2.0), 0.7)], student, DenseLogits(teacher), LABELS)
    expected, reference = by_autograd([(case.make(2.0), 0.7)], student.double(), teacher.double())
    torch.testing.assert_close(values[0].double(), expected[0], rtol=1e-6, atol=4e-6)
    torch.testing.assert_close(gradient.double(), reference, rtol=1e-5, atol=1e-6)


@choose(lambda case: derives(case.make(1.0)) and case.allows_inf)
def test_by_hand_with_a_class_that_the_teacher_rules_out(case):
    student, teacher = (logits.double() for logits in models())
    teacher[torch.arange(ITEMS), (LABELS + 1) % CLASSES] = -math.inf
    check([(case.make(2.0), 0.7)], student, teacher, **EXACT)


@derived
def test_by_hand_with_classes_that_an_item_does_not_have(case):
    student, teacher = (logits.double() for logits in models())
    gone = torch.arange(CLASSES) > torch.arange(ITEMS).unsqueeze(1) + 4
    student, teacher = student.masked_fill(gone, ABSENT), teacher.masked_fill(gone, ABSENT)
    values, gradient = differentiate([(case.make(2.0), 0.7)], student, DenseLogits(teacher), LABELS)
    expected, reference = by_autograd([(case.make(2.0), 0.7)], student, teacher)
    torch.testing.assert_close(values, expected, **EXACT)
    torch.testing.assert_close(gradient, reference, **EXACT)
    assert (gradient[gone] == 0).all()


@choose(lambda case: derives(case.make(1.0)) and case.flat)
@pytest.mark.parametrize("columns", [(0, 0), (64, 0), (0, 64)], ids=["same width", "wider student", "wider teacher"])
def test_by_hand_identical_models_agree(case, columns):
    student, teacher = (torch.cat([models()[0], draw(ITEMS, extra, seed=3)], dim=1) for extra in columns)
    values, gradient = differentiate([(case.make(3.0), 1.0)], student, DenseLogits(teacher), LABELS)
    assert not case.zero or values[0].abs().max() <= 1e-6
    assert gradient.abs().max() <= 1e-6


@choose(lambda case: derives(case.make(1.0)) and case.softened)
def test_by_hand_extreme_logits_stay_finite(case):
    student, teacher = (100 * logits for logits in models())
    values, gradient = differentiate([(case.make(1.0), 1.0)], student, DenseLogits(teacher), LABELS)
    assert values[0].isfinite().all()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("beta", [0.001, 0.3, 0.7, 0.999])
@pytest.mark.parametrize("size", [0.01, 3.0])
def test_by_hand_every_beta_of_the_generalised_jsd(beta, size):
    student, teacher = (size * logits for logits in models())
    check([(GeneralizedJSD(beta), 1.0)], student.double(), teacher.double(), **EXACT)
    _, gradient = differentiate([(GeneralizedJSD(beta), 1.0)], student, DenseLogits(teacher), LABELS)
    _, reference = by_autograd([(GeneralizedJSD(beta), 1.0)], student.double(), teacher.double())
    torch.testing.assert_close(gradient.double(), reference, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", HARD)
def test_by_hand_hard_labels(name, monkeypatch):
    student = models()[0].double()
    check([(HARD[name](), 0.3)], student, None, **EXACT)
    monkeypatch.setitem(globals(), "LABELS", torch.where(torch.arange(ITEMS) == 2, IGNORE, LABELS))
    check([(HARD[name](), 0.3)], student, None, **EXACT)
    assert (differentiate([(HARD[name](), 0.3)], student, None, LABELS)[1][2] == 0).all()


@choose(lambda _: True)
@pytest.mark.parametrize("columns", [0, 5], ids=["same width", "wider student"])
def test_several_terms_add_up(case, columns):
    """At one temperature and at two, by hand and by autograd, over all classes and over the shared ones."""
    student, teacher = (logits.double() for logits in models())
    student = torch.cat([student, 3 * draw(ITEMS, columns, seed=3).double()], dim=1)
    others = [CrossEntropy(0.1), ForwardKL(2.0), ReverseKL(), LogitMSE()]
    check([(case.make(2.0), 0.7), *((loss, 0.3) for loss in others)], student, teacher, **EXACT)


class Half(ForwardKL):
    """A divergence of its own, which inherits another one's derivative."""

    def between(self, log_p, log_q):
        return super().between(log_p, log_q) / 2


class Doubled(CrossEntropy):
    def per_item(self, student, teacher, labels):
        return 2 * super().per_item(student, teacher, labels)


class Counted(CrossEntropy):
    def mask(self, batch):
        return batch.taught


def test_a_derivative_does_not_outlive_the_definition_that_it_belongs_to():
    student, teacher = (logits.double() for logits in models())
    assert not derives(Half())
    assert not derives(Doubled())
    assert derives(Counted())
    check([(Half(2.0), 0.5), (Doubled(), 0.5)], student, teacher, **EXACT)
    halved = differentiate([(Half(), 1.0)], student, DenseLogits(teacher), LABELS)[1]
    torch.testing.assert_close(
        2 * halved, differentiate([(ForwardKL(), 1.0)], student, DenseLogits(teacher), LABELS)[1]
    )
