"""Every loss between teacher and student against formulas written out in float64, and the presets that use them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from distillkit import cli, launch
from distillkit.build import build
from distillkit.errors import UserError
from distillkit.losses.base import LogitLoss
from distillkit.losses.decoupled import DecoupledKD
from distillkit.losses.divergences import (
    AdaptiveKL,
    ForwardKL,
    GeneralizedJSD,
    ReverseKL,
    SkewedForwardKL,
    SkewedReverseKL,
)
from distillkit.losses.logits import Correlation, LogitMSE, RankingHinge, RankingLogistic
from distillkit.losses.objective import Objective
from distillkit.models.live import LiveModel
from distillkit.signals import IGNORE, Batch, DenseLogits, Signal
from distillkit.tasks.sequence_classification import SequenceClassification
from tests.logit_losses import CLASSES, ITEMS, LABELS, Case, choose, draw, every, exact, jsd, models, of
from tests.tiny import bert, tokenizer


@every
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 8.0])
def test_the_value_is_that_of_float64(case, temperature):
    student, teacher = models()
    actual = case.make(temperature).per_item(student, teacher, LABELS).double()
    expected = exact(case, student, teacher, temperature)
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6 * max(1, temperature**2))


@every
def test_bfloat16_logits(case):
    student, teacher = (logits.bfloat16() for logits in models())
    actual = case.make(2.0).per_item(student.float(), teacher.float(), LABELS).double()
    torch.testing.assert_close(actual, exact(case, student, teacher, 2.0), rtol=1e-3, atol=1e-3)


@every
def test_the_gradient_is_that_of_finite_differences(case, monkeypatch):
    student, teacher = (logits[:4].double() for logits in models())
    loss, labels = case.make(2.0), LABELS[:4].clone()
    if isinstance(loss, AdaptiveKL):  # its weights are constants by definition
        share = loss.forward_share((teacher / 2).softmax(-1), (student / 2).softmax(-1))
        assert ((share > 0.1) & (share < 0.9)).any()
        monkeypatch.setattr(loss, "forward_share", lambda *_: share)
    labels[1] = IGNORE
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda logits: loss.per_item(logits, teacher, labels), student)
    assert torch.autograd.gradcheck(lambda logits: loss.per_item(logits, teacher[:, :9], labels), student)


@every
def test_only_the_student_gets_a_gradient(case):
    student, teacher = (logits.requires_grad_() for logits in models())
    case.make(2.0).per_item(student, teacher, LABELS).sum().backward()
    assert student.grad.any()
    assert teacher.grad is None


@choose(lambda case: case.flat)
@pytest.mark.parametrize("columns", [(0, 0), (64, 0), (0, 64)], ids=["same width", "wider student", "wider teacher"])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_identical_models_agree_also_with_padded_vocabularies(case, columns, temperature):
    logits = models()[0]
    student, teacher = (torch.cat([logits, draw(ITEMS, extra, seed=3)], dim=1) for extra in columns)
    student.requires_grad_()
    loss = case.make(temperature).per_item(student, teacher, LABELS)
    loss.sum().backward()
    expected = torch.zeros(ITEMS, dtype=torch.float64) if case.zero else exact(case, logits, logits, temperature)
    torch.testing.assert_close(loss.detach().double(), expected, rtol=1e-6, atol=1e-6)
    assert student.grad.abs().max() < 2e-6


@every
@pytest.mark.parametrize("columns", [(64, 0), (0, 64)], ids=["wider student", "wider teacher"])
def test_padding_columns_change_nothing_and_get_no_gradient(case, columns):
    pair, loss = models(), case.make(2.0)
    padded = [
        torch.cat([logits, 9 * draw(ITEMS, extra, seed=3)], dim=1) for logits, extra in zip(pair, columns, strict=True)
    ]
    padded[0].requires_grad_()
    actual = loss.per_item(*padded, LABELS)
    torch.testing.assert_close(actual.detach(), loss.per_item(*pair, LABELS), rtol=1e-6, atol=1e-6)
    actual.sum().backward()
    assert (padded[0].grad[:, CLASSES:] == 0).all()
    assert padded[0].grad[:, :CLASSES].any()


@choose(lambda case: case.softened)
def test_the_factor_keeps_the_gradients_size_over_temperatures(case):
    student, teacher = (0.05 * draw(16, 50, seed=seed) for seed in (0, 1))
    norms = []
    for temperature in range(1, 9):
        leaf = student.clone().requires_grad_()
        case.make(float(temperature)).per_item(leaf, teacher, torch.arange(16)).sum().backward()
        norms.append(leaf.grad.norm().item())
    assert max(norms) / min(norms) < 1.1


@choose(lambda case: case.allows_inf)
def test_a_class_that_the_teacher_rules_out(case):
    student, teacher = models()
    ruled_out = (LABELS + 1) % CLASSES
    teacher[torch.arange(ITEMS), ruled_out] = -math.inf
    student.requires_grad_()
    loss = case.make(2.0).per_item(student, teacher, LABELS)
    expected = exact(case, student, teacher, 2.0)
    torch.testing.assert_close(loss.detach().double(), expected, rtol=1e-6, atol=4e-6)
    loss.sum().backward()
    assert student.grad.isfinite().all()


@choose(lambda case: case.softened and not case.allows_inf)
def test_what_is_infinite_by_definition_is_infinite(case):
    student, teacher = models()
    teacher[:, 4] = -math.inf
    assert (case.make(1.0).per_item(student, teacher, LABELS) == math.inf).all()


@choose(lambda case: case.softened)
def test_extreme_logits_stay_finite(case):
    """Ratios of probabilities far outside the range of float32."""
    student, teacher = (100 * logits for logits in models())
    student.requires_grad_()
    loss = case.make(1.0).per_item(student, teacher, LABELS)
    loss.sum().backward()
    assert loss.isfinite().all()
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("size", [0.01, 3.0, 20.0])
@pytest.mark.parametrize("beta", [1e-9, 1e-6, 1e-3, 0.3, 0.5, 0.7, 0.999, 1 - 1e-6, 1 - 1e-9])
def test_the_generalised_jsd_is_exact_for_every_beta(size, beta):
    student, teacher = (size * draw(ITEMS, CLASSES, seed=seed) for seed in (0, 1))
    expected = exact(Case(ForwardKL, of(lambda p, q: jsd(p, q, beta))), student, teacher)
    actual = GeneralizedJSD(beta).per_item(student, teacher, LABELS).double()
    torch.testing.assert_close(actual, expected, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("size", [0.01, 3.0])
@pytest.mark.parametrize(("end", "betas"), [(ForwardKL(), (0, 1e-20, 1e-15)), (ReverseKL(), (1, 1 - 1e-15))])
def test_the_generalised_jsd_has_no_jump_at_its_ends(size, end, betas):
    student, teacher = (size * draw(ITEMS, CLASSES, seed=seed) for seed in (0, 1))

    def both(loss: LogitLoss) -> tuple[Tensor, Tensor]:
        leaf = student.clone().requires_grad_()
        value = loss.per_item(leaf, teacher, LABELS)
        value.sum().backward()
        return value.detach(), leaf.grad

    for beta in betas:
        for near, limit in zip(both(GeneralizedJSD(beta)), both(end), strict=True):
            torch.testing.assert_close(near, limit, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("beta", [1e-3, 0.5, 0.999])
def test_the_generalised_jsd_has_the_textbooks_gradient(beta):
    student, teacher = models()
    ours, theirs = student.clone().requires_grad_(), student.double().requires_grad_()
    GeneralizedJSD(beta).per_item(ours, teacher, LABELS).sum().backward()
    q, p = theirs.softmax(-1), teacher.double().softmax(-1)
    middle = beta * p + (1 - beta) * q
    value = (beta * p * (p / middle).log() + (1 - beta) * q * (q / middle).log()).sum() / (beta * (1 - beta))
    value.backward()
    torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("loss", [SkewedForwardKL(0.1), SkewedReverseKL(0.1)])
def test_skewed_divergences_are_bounded(loss):
    student, teacher = torch.tensor([[500.0, 0.0, 0.0]]), torch.tensor([[0.0, 500.0, 0.0]])
    assert loss.per_item(student, teacher, LABELS[:1]).item() == pytest.approx(math.log(10), rel=1e-6)


def test_half_the_centred_squared_error_is_the_limit_of_kl_at_high_temperature():
    student, teacher = (logits.double() for logits in models())
    limit = ForwardKL(1e4).per_item(student, teacher, LABELS)
    torch.testing.assert_close(limit, LogitMSE(centred=True).per_item(student, teacher, LABELS) / 2, rtol=1e-3, atol=0)
    shifted = LogitMSE(centred=True).per_item(student + 5, teacher, LABELS)
    torch.testing.assert_close(shifted, LogitMSE(centred=True).per_item(student, teacher, LABELS))


def test_ranking_looks_at_the_teachers_order_alone():
    teacher = torch.tensor([[4.0, 3.0, 3.0, 1.0, -math.inf]])
    ordered = torch.tensor([[9.0, 5.0, 5.0, 2.0, 0.0]]).requires_grad_()
    loss = RankingHinge(k=10, margin=1.0).per_item(ordered, teacher, LABELS[:1])
    loss.sum().backward()
    assert loss.item() == 0
    assert (ordered.grad == 0).all()
    swapped = torch.tensor([[5.0, 5.0, 9.0, 2.0, 0.0]])  # of 9 pairs without a tie, 0 < 2 is off by 5 and 0 < 1 by 1
    assert RankingHinge(k=10).per_item(swapped, teacher, LABELS[:1]).item() == pytest.approx(6 / 9)
    assert RankingHinge(k=2).per_item(swapped, torch.zeros(1, 5), LABELS[:1]).item() == 0


@choose(lambda case: case.softened)
def test_a_uniform_student_can_learn(case):
    student, teacher = torch.zeros(ITEMS, CLASSES, requires_grad=True), models()[1]
    case.make(1.0).per_item(student, teacher, LABELS).sum().backward()
    assert student.grad.isfinite().all()
    assert student.grad.any()


def test_a_label_that_only_one_model_knows_leaves_the_divergence_of_the_rest():
    student, teacher = models()
    labels = torch.full((ITEMS,), CLASSES - 1)
    actual = DecoupledKD(alpha=3.0, beta=2.0, temperature=1.0).per_item(student, teacher[:, :-1], labels)
    torch.testing.assert_close(actual, 2 * ForwardKL().per_item(student, teacher[:, :-1], labels))


@every
def test_which_items_count(case):
    labels, taught = torch.tensor([1, IGNORE, 0]), torch.tensor([True, True, False])
    loss, batch = case.make(1.0), Batch({}, torch.ones(3, dtype=torch.bool), labels, taught)
    assert loss.needs_teacher
    assert loss.mask(batch).tolist() == [True, not loss.needs_labels, False]
    assert loss.needs_labels == isinstance(loss, DecoupledKD)


REFUSED = {
    "temperature": (lambda: ReverseKL(0.0), lambda: Correlation(-1.0), lambda: DecoupledKD(temperature=math.nan)),
    "beta": (lambda: GeneralizedJSD(1.01), lambda: GeneralizedJSD(math.nan), lambda: DecoupledKD(beta=-1)),
    "alpha": (lambda: SkewedForwardKL(1.0), lambda: SkewedReverseKL(-0.1), lambda: DecoupledKD(alpha=-1)),
    "head": (lambda: AdaptiveKL(1.5),),
    "k": (lambda: RankingLogistic(1), lambda: RankingHinge(65)),
    "margin": (lambda: RankingHinge(margin=0.0),),
}


@pytest.mark.parametrize(("key", "make"), [(key, make) for key, makers in REFUSED.items() for make in makers])
def test_impossible_hyper_parameters_are_refused(key, make):
    with pytest.raises(UserError, match=f"^{key}: must be"):
        make()


PRESETS = {
    "kd": ForwardKL,
    "reverse_kl": ReverseKL,
    "jsd": GeneralizedJSD,
    "gkd": GeneralizedJSD,
    "distillm": SkewedForwardKL,
    "dkd": DecoupledKD,
}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_composes_and_lowers_its_loss(name, tmp_path, monkeypatch):
    started = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launch, "start", lambda *what: started.append(what))
    words = [
        f"loss={name}",
        "teacher=live",
        "teacher.path=big",
        "loss.temperature=3",
        "dataset.train=rows.csv",
        "student.path=small",
    ]
    assert cli.main(["train", *words]) == 0
    objective: Objective = build(started[0][1].loss, "loss")
    term = objective.losses[-1]
    assert type(term) is PRESETS[name]
    assert term.temperature == 3

    student, teacher = (
        LiveModel(bert(1, seed=seed, labels=4), tokenizer(), SequenceClassification()) for seed in (0, 1)
    )
    ids = torch.randint(5, 300, (16, 6), generator=torch.Generator().manual_seed(0))
    every_item = torch.ones(16, dtype=torch.bool)
    batch = Batch({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, every_item, ids[:, 0] % 4, every_item)
    with torch.no_grad():
        taught = Signal(DenseLogits(20 * teacher(batch).logits.values))
    optimizer, losses = torch.optim.AdamW(student.parameters(), lr=1e-2), []
    for _ in range(8):
        loss, _ = objective(student(batch), taught, batch, objective.counts(batch))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.95 * losses[0]
