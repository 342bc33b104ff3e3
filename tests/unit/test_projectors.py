"""Projectors: shapes, training, and orthogonality that training does not lose."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW

from distillkit.errors import UserError
from distillkit.losses.hidden import HiddenMSE
from distillkit.losses.projectors import projector
from distillkit.signals import Signal
from tests.captured import batch, rows_of, shape, signal, to


def test_equal_widths_need_none():
    for kind in ("linear", "orthogonal", None):
        assert isinstance(projector(kind, 8, 8), nn.Identity)


def test_unequal_widths_without_projector_are_refused():
    with pytest.raises(
        UserError, match=r"projector: the student is 6 wide and the teacher 8; set projector: linear or"
    ):
        projector(None, 6, 8)


@pytest.mark.parametrize("kind", ["linear", "orthogonal"])
@pytest.mark.parametrize(("student", "teacher"), [(6, 8), (8, 6)])
def test_it_trains(kind, student, teacher):
    torch.manual_seed(0)
    project = projector(kind, student, teacher)
    inputs, targets = torch.randn(32, student), torch.randn(32, teacher)
    assert project(inputs).shape == targets.shape
    optimizer = SGD(project.parameters(), lr=0.1)
    losses = []
    for _ in range(5):
        loss = (project(inputs) - targets).square().mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("optimizer", [partial(SGD, lr=1.0), partial(AdamW, lr=0.1, weight_decay=0.5)])
@pytest.mark.parametrize(("student", "teacher"), [(6, 8), (8, 6)])
def test_orthogonal_stays_orthogonal(student, teacher, optimizer):
    torch.manual_seed(0)
    project = projector("orthogonal", student, teacher)
    before = project.weight.detach().clone()
    steps = optimizer(project.parameters())
    for _ in range(3):
        steps.zero_grad()
        (project(torch.randn(5, student)) - torch.randn(5, teacher)).square().mean().backward()
        steps.step()
    weight = project.weight
    assert (weight - before).abs().max() > 1e-2
    product = weight.T @ weight if teacher > student else weight @ weight.T
    torch.testing.assert_close(product, torch.eye(6), rtol=0, atol=1e-5)
    assert project.bias is None


def test_one_a_mapped_layer_in_the_losss_parameters():
    loss = HiddenMSE()
    assert not list(loss.parameters())
    loss.bind(shape(3), shape(6, head_width=5))
    shapes = {name: tuple(value.shape) for name, value in loss.named_parameters()}
    assert shapes == {
        f"projectors.{i}.{part}": size for i in range(3) for part, size in [("weight", (10, 6)), ("bias", (10,))]
    }


def test_a_checkpoint_brings_them_back():
    for kind in ("linear", "orthogonal"):
        first, second = (HiddenMSE(projector=kind) for _ in range(2))
        for loss in (first, second):
            loss.bind(shape(2), shape(2, head_width=5))
        second.load_state_dict(first.state_dict())
        said = to(signal(rows_of(first.student_features, shape(2), 1)), torch.float32)
        taught = to(signal(rows_of(first.teacher_features, shape(2, head_width=5), 2)), torch.float32)
        assert first(said, taught, batch()) == second(said, taught, batch())


def test_binding_again_starts_afresh():
    loss = HiddenMSE("last")
    loss.bind(shape(3), shape(6, head_width=5))
    loss.bind(shape(1), shape(2))
    assert not list(loss.parameters())
    assert loss.student_features == {"layers.0.hidden"}
    assert loss.teacher_features == {"layers.1.hidden"}
    features = Signal(features={name: torch.zeros(4, 5, 6) for name in ("layers.0.hidden", "layers.1.hidden")})
    assert loss(features, features, batch()) == 0
