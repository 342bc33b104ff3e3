"""Learning rates against hand values, and what decays."""

from __future__ import annotations

import math

import pytest
import torch

from distillkit.errors import UserError
from distillkit.schema import Schedule, TrainSettings
from distillkit.training.optimizer import check_settings, learning_rate, make_optimizer, warmup_steps
from tests.tiny import bert, llama


def rates(steps: int = 12, **settings) -> list[float]:
    settings = TrainSettings(**{"learning_rate": 1.0, "warmup": 2} | settings)
    return [learning_rate(step, steps, settings) for step in range(steps)]


def test_linear():
    assert rates(schedule=Schedule.linear) == pytest.approx([0.5, 1.0, 1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1])


def test_linear_to_a_tenth():
    expected = [0.5, 1.0, *(0.1 + 0.9 * (1 - step / 10) for step in range(10))]
    assert rates(schedule=Schedule.linear, final_learning_rate=0.1) == pytest.approx(expected)


def test_cosine():
    made = rates(schedule=Schedule.cosine)
    assert made[:3] == pytest.approx([0.5, 1.0, 1.0])
    assert made[7] == pytest.approx(0.5)  # half way
    assert made[4] == pytest.approx(0.5 * (1 + math.cos(0.2 * math.pi)))
    assert made[-1] == pytest.approx(0.5 * (1 + math.cos(0.9 * math.pi)))


def test_constant():
    assert rates(schedule=Schedule.constant, final_learning_rate=0.1) == [0.5] + [1.0] * 11


def test_warm_up_is_a_share_below_one_and_a_number_from_one():
    assert warmup_steps(50, TrainSettings(warmup=0.1)) == 5
    assert warmup_steps(50, TrainSettings(warmup=1)) == 1
    assert warmup_steps(50, TrainSettings(warmup=0)) == 0
    assert rates(steps=3, warmup=9) == pytest.approx([1 / 9, 2 / 9, 3 / 9])
    assert rates(steps=1, warmup=0.1) == [1.0]


@pytest.mark.parametrize("make", [bert, llama])
def test_norms_and_biases_do_not_decay(make):
    model = make()
    decay, free = make_optimizer(model, TrainSettings(weight_decay=0.3)).param_groups
    assert (decay["weight_decay"], free["weight_decay"]) == (0.3, 0.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    spared = {names[id(parameter)] for parameter in free["params"]}
    assert spared == {name for name in names.values() if "bias" in name or "norm" in name.lower()}
    assert len(decay["params"]) + len(free["params"]) == len(names)


def test_frozen_parameters_are_left_out():
    model = bert()
    model.bert.requires_grad_(False)
    trained = [
        parameter for group in make_optimizer(model, TrainSettings()).param_groups for parameter in group["params"]
    ]
    assert {id(parameter) for parameter in trained} == {id(parameter) for parameter in model.classifier.parameters()}


def test_a_step_is_that_of_adamw_by_hand():
    layer = torch.nn.Linear(1, 1, bias=False)
    layer.weight.data.fill_(2.0)
    settings = TrainSettings(learning_rate=0.1, weight_decay=0.5, betas=[0.9, 0.99], epsilon=1e-8)
    optimizer = make_optimizer(layer, settings)
    layer.weight.grad = torch.full((1, 1), 3.0)
    optimizer.step()
    assert layer.weight.item() == pytest.approx(2.0 * (1 - 0.1 * 0.5) - 0.1 * 3 / (3 + 1e-8))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("batch_size", 0),
        ("micro_batch_size", 0),
        ("max_steps", -1),
        ("epochs", 0.0),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("weight_decay", -0.1),
        ("warmup", -1.0),
        ("betas", [0.9]),
        ("betas", [0.9, 1.0]),
        ("max_grad_norm", 0.0),
        ("checkpoint_every", 0),
        ("keep_checkpoints", 0),
        ("log_every", 0),
    ],
)
def test_settings_that_cannot_work_are_refused_by_their_key(key, value):
    check_settings(TrainSettings())
    with pytest.raises(UserError, match=rf"train\.{key}: must"):
        check_settings(TrainSettings(**{key: value}))
