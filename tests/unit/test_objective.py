"""The objective: weights, masks, and averages over the whole optimiser step."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from distillkit.errors import UserError
from distillkit.features import ModelShape
from distillkit.losses.base import FeatureLoss
from distillkit.losses.divergences import ForwardKL
from distillkit.losses.objective import Objective
from distillkit.losses.schedule import Linear
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
        ({"kd": {"weight": Linear(1.0, -1.0), "loss": ForwardKL()}}, "loss.terms.kd.weight"),
        ({"kd": {"weight": Linear(0.0, 0.0), "loss": ForwardKL()}}, "loss.terms"),
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


class Nearer(FeatureLoss):
    """Σ (w · student − teacher)² over the rows."""

    def bind(self, student, teacher):
        if student.depth != teacher.depth:
            raise UserError("needs equal depths", where="layers")
        self.student_features = self.teacher_features = frozenset({"layers.0.hidden"})
        self.factor = torch.nn.Parameter(torch.ones(()))

    def mask(self, batch):
        return batch.inputs["rows"]

    def forward(self, student, teacher, batch):
        ours, theirs = (signal.features["layers.0.hidden"] for signal in (student, teacher))
        return (self.factor * ours - theirs).square()[batch.inputs["rows"]].sum()


SHAPE = ModelShape(depth=2, width=4, heads=1, key_value_heads=1, head_width=4)


def mixed(**more) -> Objective:
    terms = {
        "near": {"weight": 2.0, "loss": Nearer()},
        "hard": {"weight": 0.5, "loss": CrossEntropy()},
    }
    objective = Objective(terms, **more)
    objective.bind(SHAPE, SHAPE)
    return objective


def asked(objective: Objective) -> tuple[Signal, Signal, Batch]:
    """Nine items with logits, and three rows with a feature, of which the first two count."""
    ours, theirs = torch.tensor([1.0, 2.0, 4.0], requires_grad=True), torch.tensor([2.0, 5.0, 9.0])
    rows = batch()
    rows = Batch({"rows": torch.tensor([True, True, False])}, rows.counted, rows.labels, rows.taught)
    student = Signal(DenseLogits(logits(1)), {"layers.0.hidden": ours})
    return student, Signal(None, {"layers.0.hidden": theirs}), rows


def test_terms_of_logits_and_of_features_are_averaged_over_their_own_items():
    objective = mixed()
    student, teacher, rows = asked(objective)
    counts = objective.counts(rows)
    assert counts.tolist() == [2.0, 7.0]
    loss, sums = objective(student, teacher, rows, counts)
    hard = torch.nn.functional.cross_entropy(student.logits.values, rows.labels)
    assert loss.item() == pytest.approx(2 * (1 + 9) / 2 + 0.5 * hard.item(), rel=1e-6)
    assert sums.tolist() == pytest.approx([10.0, 7 * hard.item()])
    assert objective.total(sums, counts) == pytest.approx(loss.item())
    loss.backward()
    assert student.features["layers.0.hidden"].grad.tolist() == [-2.0, -6.0, 0.0]
    assert objective.losses[0].factor.grad is not None


def test_what_an_objective_wants():
    wanted = mixed().wanted_of_student
    assert (wanted.logits, wanted.features) == (True, {"layers.0.hidden"})
    wanted = mixed().wanted_of_teacher
    assert (wanted.logits, wanted.features) == (False, {"layers.0.hidden"})
    assert distillation().wanted_of_teacher.logits
    alone = Objective({"near": {"weight": 1.0, "loss": Nearer()}})
    assert alone.needs_teacher
    assert not alone.wanted_of_student.logits


def test_models_that_do_not_fit_are_refused_by_the_terms_key():
    with pytest.raises(UserError, match=r"^loss\.terms\.near\.loss\.layers: needs equal depths"):
        Objective({"near": {"weight": 1.0, "loss": Nearer()}}).bind(SHAPE, replace(SHAPE, depth=3))


def test_balanced_terms_weigh_what_their_weights_say():
    """After the first step each term is divided by its running mean: the loss is the sum of the weights."""
    objective = mixed(balance="size")
    student, teacher, rows = asked(objective)
    counts = objective.counts(rows)
    first, sums = objective(student, teacher, rows, counts)
    assert first.item() == pytest.approx(mixed()(student, teacher, rows, counts)[0].item())
    objective.remember(sums, counts)
    second, _ = objective(student, teacher, rows, counts)
    assert second.item() == pytest.approx(2.5, rel=1e-6)
    objective.remember(3 * sums, counts)
    assert objective(student, teacher, rows, counts)[0].item() == pytest.approx(2.5 / 2, rel=1e-6)
    objective.remember(sums, torch.tensor([0.0, 7.0]))  # a step without rows teaches nothing about them
    assert objective.sizes[0].item() == pytest.approx(2 * 5.0)
    assert {"sizes", "sized"} <= set(objective.state_dict())
