"""InfoNCE in one process against the formula written out in float64."""

from __future__ import annotations

from dataclasses import replace
from math import exp, fsum, log, sqrt

import pytest
import torch

from distillkit.errors import UserError
from distillkit.losses.contrastive import InfoNCE
from distillkit.losses.schedule import Linear
from distillkit.signals import Signal
from tests.captured import CHECKS, Case, batch, shape, weights

WIDE = shape(4, head_width=5)
TOP = [("layers.1.hidden", "layers.3.hidden")]


def cosine(a, b):
    return float(a @ b) / sqrt(float(a @ a) * float(b @ b))


def of(pairs, temperature=0.07, pooled=lambda value: value.sum(0) / len(value)):
    def formula(student, teacher, loss):
        total = 0.0
        for index, (ours, theirs) in enumerate(pairs):
            s, t = [pooled(row[ours]) for row in student], [pooled(row[theirs]) for row in teacher]
            if (projector := weights(loss, index)) is not None:
                s = [projector[0] @ vector + projector[1] for vector in s]
            for i, own in enumerate(s):
                scores = [cosine(own, other) / temperature for other in t]
                total += (log(fsum(exp(score) for score in scores)) - scores[i]) / len(pairs)
        return total

    return formula


UNIFORM = [("layers.0.hidden", "layers.1.hidden"), *TOP]
OPEN = {"zero": False, "between_rows": True}
CASES = {
    "plain": Case(InfoNCE, of(TOP), **OPEN),
    "projected": Case(InfoNCE, of(TOP), teacher=WIDE, **OPEN),
    "orthogonal": Case(lambda: InfoNCE("uniform", projector="orthogonal"), of(UNIFORM), teacher=WIDE, **OPEN),
    "first, warm": Case(
        lambda: InfoNCE(pooling="first", temperature=0.5), of(TOP, 0.5, lambda value: value[0]), teacher=WIDE, **OPEN
    ),
    "modules": Case(
        lambda: InfoNCE(modules=[["row", "row"]], pooling="pooled"),
        of([("module:row", "module:row")], pooled=lambda value: value),
        **OPEN,
    ),
}


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", CASES)
def test_every_loss(name, check):
    check(CASES[name])


def vectors(*values):
    return [Signal(features={"module:row": value}) for value in values]


def loss_of_rows(**arguments):
    loss = InfoNCE(modules=[["row", "row"]], pooling="pooled", **arguments)
    loss.bind(shape(), shape())
    return loss


def test_by_hand():
    said, taught = vectors(torch.tensor([[2.0, 0.0], [0.0, 3.0]]), torch.tensor([[5.0, 0.0], [0.0, 0.1]]))
    expected = 2 * log(1 + exp(-1 / 0.5))
    assert loss_of_rows(temperature=0.5)(said, taught, batch((2, 2))).item() == pytest.approx(expected, rel=1e-6)


def test_a_row_alone_costs_nothing():
    student = torch.randn(1, 4, requires_grad=True)
    cost = loss_of_rows()(*vectors(student, torch.randn(1, 4)), batch((2,)))
    cost.backward()
    assert cost == 0
    assert student.grad.abs().max() < 1e-6


def test_rows_that_are_not_real_do_no_harm():
    student = torch.randn(2, 4, requires_grad=True)
    cost = loss_of_rows()(*vectors(student, torch.randn(2, 4)), replace(batch((2, 2)), real=False))
    cost.backward()
    assert cost.isfinite()
    assert student.grad is not None  # so that every process has gradients to exchange


def test_every_row_is_an_item():
    assert InfoNCE().mask(batch()).tolist() == [True] * 4


def test_the_temperature_may_follow_a_schedule():
    loss = loss_of_rows(temperature=Linear(1.0, 0.1))
    signals = vectors(torch.randn(3, 4), torch.randn(3, 4))
    loss.advance(1.0)
    assert loss(*signals, batch((2,) * 3)) == loss_of_rows(temperature=0.1)(*signals, batch((2,) * 3))


def test_bad_arguments_are_refused():
    with pytest.raises(UserError, match="temperature: must be above 0, got 0"):
        InfoNCE(temperature=0.0)
    with pytest.raises(UserError, match="projector: the student is 6 wide and the teacher 10"):
        InfoNCE(projector=None).bind(shape(2), WIDE)
