"""Teachers that list only some classes: with all listed the dense comparison, with fewer its buckets."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from distillkit.errors import UserError
from distillkit.losses import chunks as memory
from distillkit.losses.base import LogitLoss
from distillkit.losses.decoupled import DecoupledKD
from distillkit.losses.divergences import AdaptiveKL, ForwardKL, GeneralizedJSD, ReverseKL, TotalVariation
from distillkit.losses.logits import LogitMSE, RankingHinge
from distillkit.losses.sparse import compare, in_buckets
from distillkit.losses.task import CrossEntropy
from distillkit.losses.vocabulary import WeightedTerm, logit_terms
from distillkit.signals import ABSENT, IGNORE, DenseLogits, HeadLogits, SparseLogits
from tests.logit_losses import CLASSES, ITEMS, LABELS, choose, draw, every, kl, models

EVERY = torch.ones(ITEMS, dtype=torch.bool)


def sides(loss: LogitLoss, student: Tensor, teacher: DenseLogits | SparseLogits, labels: Tensor = LABELS):
    """Values and gradient of one loss."""
    leaf = student.clone().requires_grad_()
    (values,) = compare([loss], leaf, teacher, labels)
    return values.detach(), torch.autograd.grad(values.sum(), leaf)[0]


@every
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 8.0])
@pytest.mark.parametrize("columns", [(0, 0), (5, 0), (0, 5)], ids=["same width", "wider student", "wider teacher"])
def test_with_every_class_listed_it_is_the_dense_loss(case, temperature, columns):
    student, teacher = (
        torch.cat([logits, 3 * draw(ITEMS, extra, seed=3)], dim=1)
        for logits, extra in zip(models(), columns, strict=True)
    )
    loss, scale = case.make(temperature), max(1.0, temperature**2)
    listed = SparseLogits.best(teacher, teacher.shape[1])
    for mine, dense in zip(sides(loss, student, listed), sides(loss, student, DenseLogits(teacher)), strict=True):
        torch.testing.assert_close(mine, dense, rtol=1e-6, atol=2e-6 * scale)
    student, teacher = student.double(), teacher.double()
    listed = SparseLogits.best(teacher, teacher.shape[1])
    for mine, dense in zip(sides(loss, student, listed), sides(loss, student, DenseLogits(teacher)), strict=True):
        torch.testing.assert_close(mine, dense, rtol=1e-9, atol=1e-9)


@choose(lambda case: case.flat)
@pytest.mark.parametrize("columns", [(0, 0), (64, 0), (0, 64)], ids=["same width", "wider student", "wider teacher"])
def test_identical_models_agree(case, columns):
    student, teacher = (torch.cat([models()[0], draw(ITEMS, extra, seed=3)], dim=1) for extra in columns)
    values, gradient = sides(case.make(2.0), student, SparseLogits.best(teacher, teacher.shape[1]))
    assert not case.zero or values.abs().max() <= 1e-6 * 2.0**2
    assert case.make is TotalVariation or gradient.abs().max() <= 2e-6  # its gradient does not fade near q = p


@every
def test_identical_models_agree_at_temperature_1_however_few_classes_are_listed(case):
    """What is left is one class then: at other temperatures the teacher's is not known."""
    values, gradient = sides(case.make(1.0), models()[0], SparseLogits.best(models()[0], 4))
    assert not case.zero or values.abs().max() <= 1e-6
    assert not case.flat or case.make is TotalVariation or gradient.abs().max() <= 2e-6


def softened(logits: list[float], temperature: float) -> list[float]:
    powers = [math.exp((logit - max(logits)) / temperature) for logit in logits]
    return [power / math.fsum(powers) for power in powers]


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_rest_is_one_class_over_which_the_teacher_is_spread_evenly(temperature):
    student, teacher = (logits.double() for logits in models())
    listed = SparseLogits.best(teacher, 4)
    expected = []
    for ours, theirs, ids in zip(student.tolist(), teacher.tolist(), listed.ids.tolist(), strict=True):
        p = softened(theirs, 1.0)
        left = 1 - math.fsum(p[index] for index in ids)
        spread = [p[index] if index in ids else left / (CLASSES - 4) for index in range(CLASSES)]
        p, q = softened([math.log(x) for x in spread], temperature), softened(ours, temperature)
        buckets = [[x[index] for index in ids] for x in (p, q)]
        buckets = [[*some, 1 - math.fsum(some)] for some in buckets]
        expected.append(temperature**2 * kl(*buckets))
    values, _ = sides(ForwardKL(temperature), student, listed)
    torch.testing.assert_close(values, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-12)


@every
@pytest.mark.parametrize("columns", [CLASSES, CLASSES + 3, CLASSES - 3], ids=["same width", "wider", "narrower"])
def test_the_gradient_is_that_of_finite_differences(case, columns):
    student = 3 * draw(ITEMS, columns, seed=0).double().requires_grad_()
    listed = SparseLogits.best(models()[1].double(), 5)
    listed = replace(listed, ids=listed.ids.masked_fill(torch.arange(5) > torch.arange(ITEMS).unsqueeze(1), -1))
    reduced, taught, slots = in_buckets(student.detach(), listed, LABELS, 2.0, lumps=True, absolute=False)
    assert reduced.shape == taught.shape == (ITEMS, 6)
    assert slots.shape == LABELS.shape
    if not isinstance(case.make(2.0), AdaptiveKL):  # its weights are constants by definition
        assert torch.autograd.gradcheck(lambda logits: compare([case.make(2.0)], logits, listed, LABELS)[0], student)


@every
def test_empty_slots_take_no_part(case):
    student, teacher = (logits.double() for logits in models())
    few, junk = SparseLogits.best(teacher, 5), torch.full((ITEMS, 3), 7.0, dtype=torch.float64)
    empty = torch.full((ITEMS, 3), -1)
    more = replace(few, ids=torch.cat([empty, few.ids], 1), log_probs=torch.cat([junk, few.log_probs], 1))
    for mine, same in zip(sides(case.make(2.0), student, more), sides(case.make(2.0), student, few), strict=True):
        torch.testing.assert_close(mine, same, rtol=1e-9, atol=1e-12)


def test_an_item_of_which_nothing_is_listed_says_only_that_the_rest_is_everything():
    nothing = SparseLogits(torch.full((ITEMS, 2), -1), torch.zeros(ITEMS, 2), torch.zeros(ITEMS), CLASSES)
    values, gradient = sides(GeneralizedJSD(0.3, 2.0), models()[0], nothing)
    assert values.abs().max() <= 1e-6
    assert gradient.abs().max() <= 1e-6


def test_nothing_left_over_rules_the_other_classes_out():
    student, teacher = models()
    listed = replace(SparseLogits.best(teacher, 4), rest=torch.full((ITEMS,), -math.inf))
    values, gradient = sides(ForwardKL(2.0), student, listed)
    assert values.isfinite().all()
    others = torch.ones(ITEMS, CLASSES, dtype=torch.bool).scatter(1, listed.ids, False)
    assert (gradient[others] > 0).all()
    assert (sides(ReverseKL(), student, listed)[0] == math.inf).all()


@every
@pytest.mark.parametrize("chunk", [1 << 24, 3 * CLASSES, 1], ids=["one chunk", "three chunks", "a chunk an item"])
def test_the_vocabulary_pass_is_the_dense_students_comparison(case, chunk, monkeypatch):
    monkeypatch.setitem(memory.CHUNK, "cpu", chunk)
    hidden, weight, taught = draw(ITEMS, 4, seed=5), 2 * draw(CLASSES, 4, seed=6), torch.arange(ITEMS) < 5
    listed = SparseLogits.best(models()[1], 4)
    terms = [WeightedTerm(case.make(2.0), taught, torch.tensor(0.2))]
    terms += [WeightedTerm(ForwardKL(2.0), EVERY, torch.tensor(0.2))]
    terms += [WeightedTerm(CrossEntropy(), EVERY, torch.tensor(0.3))]
    theirs = [x.double().requires_grad_() for x in (hidden, weight)]
    ours = [x.requires_grad_() for x in (hidden, weight)]
    loss, sums = logit_terms(HeadLogits(*ours), listed, LABELS, terms)
    dense, expected = logit_terms(DenseLogits(theirs[0] @ theirs[1].T), listed, LABELS, terms)
    loss.backward()
    dense.backward()
    assert loss.item() == pytest.approx(dense.item(), rel=1e-5)
    torch.testing.assert_close(sums.double(), expected, rtol=1e-5, atol=1e-5)
    for mine, reference in zip(ours, theirs, strict=True):
        assert (mine.grad - reference.grad).norm() <= 1e-5 * reference.grad.norm()


def test_labels_go_to_their_buckets():
    teacher = torch.tensor([[5.0, 4.0, 3.0, 2.0, 1.0, 0.0]] * 5)
    labels = torch.tensor([1, 4, IGNORE, 5, 0])
    _, _, slots = in_buckets(torch.zeros(5, 5), SparseLogits.best(teacher, 3), labels, 1.0, lumps=True, absolute=False)
    assert slots.tolist() == [1, 3, IGNORE, 4, 0]  # listed, of the rest, none, of the teacher alone, listed
    values, _ = sides(DecoupledKD(temperature=1.0), torch.randn(5, 5), SparseLogits.best(teacher, 3), labels)
    assert values.isfinite().all()


def test_a_loss_on_logits_needs_the_normaliser_unless_they_are_centred():
    student, teacher = models()
    listed = SparseLogits.best(teacher, 4)
    values, _ = sides(LogitMSE(), student, listed)
    expected = (student - teacher).gather(1, listed.ids).square().mean(dim=1)
    torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-5)
    bare = replace(listed, normaliser=None)
    assert sides(LogitMSE(centred=True), student, bare)[0].isfinite().all()
    assert sides(RankingHinge(), student, bare)[0].isfinite().all()
    with pytest.raises(UserError, match=r"^loss: compares logits.*; compare centred logits, or store the normaliser$"):
        sides(LogitMSE(), student, bare)


class Largest(LogitLoss):
    """A loss of the user's own sees the buckets."""

    def per_item(self, student, teacher, labels):
        assert student.shape == teacher.shape == (ITEMS, 5)
        return (student.log_softmax(dim=-1) - teacher.log_softmax(dim=-1)).abs().amax(dim=-1)


def test_a_loss_of_the_users_own_works():
    assert sides(Largest(), models()[0], SparseLogits.best(models()[0], 4))[0].abs().max() <= 1e-6


def test_the_distribution_that_a_list_stands_for():
    listed = SparseLogits.best(models()[1], 4)
    some = listed[torch.tensor([3, 0])]
    listed = replace(listed, ids=listed.ids.masked_fill(torch.arange(ITEMS).unsqueeze(1) == 6, -1))
    dense = listed.rows(0, ITEMS)
    assert dense.shape == (ITEMS, CLASSES)
    torch.testing.assert_close(dense[:6].exp().sum(dim=1), torch.ones(6))
    torch.testing.assert_close(dense[:6].gather(1, listed.ids[:6]), listed.log_probs[:6])
    assert (dense[6] == listed.rest[6] - math.log(CLASSES)).all()
    torch.testing.assert_close(some.rows(0, 2), dense[[3, 0]])
    assert (dense > ABSENT).all()
