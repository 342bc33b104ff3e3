"""The objective: weights, masks, and averages over the whole optimiser step."""

from __future__ import annotations

import pytest
import torch

from distillkit.errors import UserError
from distillkit.losses.divergences import ForwardKL
from distillkit.losses.objective import Objective
from distillkit.losses.task import CrossEntropy
from distillkit.signals import IGNORE, Batch, DenseLogits, HeadLogits, Signal

ITEMS, CLASSES = 9, 6


def distillation(alpha: float = 0.3, temperature: float = 2.0) -> Objective:
    return Objective(
        {
            "hard": {"weight": alpha, "loss": CrossEntropy()},
            "kd": {"weight": 1 - alpha, "loss": ForwardKL(temperature)},
        }
    )


def batch() -> Batch:
    labels = torch.tensor([1, 0, IGNORE, 5, 2, IGNORE, 3, 3, 1])
    taught = torch.tensor([True] * 7 + [False] * 2)
    return Batch({}, torch.ones(ITEMS, dtype=torch.bool), labels, taught)


def logits(seed: int) -> torch.Tensor:
    return 2 * torch.randn(ITEMS, CLASSES, generator=torch.Generator().manual_seed(seed))


def expected_loss(student: torch.Tensor, teacher: torch.Tensor, rows: Batch, counts: list[float]) -> torch.Tensor:
    """0.3 · Σ CE / labelled + 0.7 · 4 · Σ KL at T = 2 / taught, in float64."""
    log_q = student.double().log_softmax(-1)
    known = rows.labels != IGNORE
    hard = -log_q[known, rows.labels[known]].sum() / counts[0]
    soft_q, soft_p = (student.double() / 2).log_softmax(-1), (teacher.double() / 2).log_softmax(-1)
    kl = 4 * (soft_p.exp() * (soft_p - soft_q)).sum(-1)[rows.taught].sum() / counts[1]
    return 0.3 * hard + 0.7 * kl


def test_dense_loss_and_gradient_are_those_of_float64():
    student, teacher = logits(1).requires_grad_(), logits(2)
    rows = batch()
    objective = distillation()
    counts = objective.counts(rows)
    assert counts.tolist() == [7, 7]
    loss, sums = objective(Signal(DenseLogits(student)), Signal(DenseLogits(teacher)), rows, counts)
    leaf = student.detach().double().requires_grad_()
    wanted = expected_loss(leaf, teacher, rows, [7, 7])
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-6)
    assert objective.total(sums, counts) == pytest.approx(wanted.item(), rel=1e-6)
    loss.backward()
    wanted.backward()
    torch.testing.assert_close(student.grad.double(), leaf.grad, rtol=1e-5, atol=1e-7)


def test_items_outside_every_mask_get_exactly_no_gradient():
    student, rows = logits(1).requires_grad_(), batch()
    rows = Batch(rows.inputs, rows.counted, torch.where(rows.taught, rows.labels, IGNORE), rows.taught)
    objective = distillation()
    loss, _ = objective(Signal(DenseLogits(student)), Signal(DenseLogits(logits(2))), rows, objective.counts(rows))
    loss.backward()
    assert (student.grad[7:] == 0).all()
    assert (student.grad[:7] != 0).any(dim=1).all()


def test_shares_of_micro_batches_add_up_to_the_loss_of_the_step():
    student, teacher, rows, objective = logits(1), logits(2), batch(), distillation()
    counts = objective.counts(rows)
    whole, _ = objective(Signal(DenseLogits(student)), Signal(DenseLogits(teacher)), rows, counts)
    parts = []
    for start, stop in ((0, 2), (2, 3), (3, 9)):
        piece = Batch({}, rows.counted[start:stop], rows.labels[start:stop], rows.taught[start:stop])
        said = (Signal(DenseLogits(values[start:stop])) for values in (student, teacher))
        parts.append(objective(*said, piece, counts)[0])
    assert sum(parts).item() == pytest.approx(whole.item(), rel=1e-6)


def test_head_logits_give_what_dense_logits_give():
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(ITEMS, 4, generator=generator), torch.randn(CLASSES, 4, generator=generator)
    rows, objective, teacher = batch(), distillation(), Signal(DenseLogits(logits(2)))
    counts = objective.counts(rows)
    dense, dense_sums = objective(Signal(DenseLogits(hidden @ weight.T)), teacher, rows, counts)
    chunked, sums = objective(Signal(HeadLogits(hidden, weight)), teacher, rows, counts)
    assert chunked.item() == pytest.approx(dense.item(), rel=1e-6)
    torch.testing.assert_close(sums, dense_sums)


def test_a_step_without_any_item_of_a_term_has_no_loss_from_it():
    rows = batch()
    rows = Batch({}, rows.counted, torch.full_like(rows.labels, IGNORE), torch.zeros_like(rows.taught))
    objective = distillation()
    loss, _ = objective(Signal(DenseLogits(logits(1))), Signal(DenseLogits(logits(2))), rows, objective.counts(rows))
    assert loss.item() == 0


def test_a_weight_of_zero_switches_a_term_off():
    objective = Objective({"hard": {"weight": 1, "loss": CrossEntropy()}, "kd": {"weight": 0, "loss": ForwardKL()}})
    assert objective.names == ["hard"]
    assert not objective.needs_teacher
    assert objective.needs_labels
    assert distillation().needs_teacher


@pytest.mark.parametrize(
    ("terms", "key"),
    [
        ({}, "loss.terms"),
        ({"kd": {"weight": 0.0, "loss": ForwardKL()}}, "loss.terms"),
        ({"kd": {"weight": -1.0, "loss": ForwardKL()}}, "loss.terms.kd.weight"),
        ({"kd": {"weight": "much", "loss": ForwardKL()}}, "loss.terms.kd.weight"),
        ({"kd": {"loss": ForwardKL()}}, "loss.terms.kd"),
        ({"kd": {"weight": 1.0, "loss": torch.nn.ReLU()}}, "loss.terms.kd.loss"),
    ],
)
def test_bad_terms_are_refused_by_their_key(terms, key):
    with pytest.raises(UserError, match=key):
        Objective(terms)


def test_alpha_and_temperature_are_checked():
    terms = {"hard": {"weight": 1.0, "loss": CrossEntropy()}}
    with pytest.raises(UserError, match=r"loss\.alpha"):
        Objective(terms, alpha=1.5)
    with pytest.raises(UserError, match=r"loss\.temperature"):
        Objective(terms, temperature=0.0)
