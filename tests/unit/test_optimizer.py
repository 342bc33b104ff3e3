"""Learning rates against hand values, and what decays."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from distillkit.errors import UserError
from distillkit.schema import LoraSettings, Schedule, TrainSettings
from distillkit.training.optimizer import learning_rate, make_optimizer, set_learning_rate, warmup_steps
from distillkit.training.settings import check_settings
from distillkit.training.tuning import Tuning
from tests.tiny import bert, classifier, encoded, language_model, llama


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
        ("max_nonfinite_steps", 0),
        ("log_every", 0),
        ("head_learning_rate", 0.0),
        ("layer_decay", 0.0),
        ("layer_decay", 1.1),
        ("freeze", -1),
        ("freeze", ""),
        ("freeze", True),
        ("freeze", 0.5),
        ("freeze", []),
        ("freeze", ["classifier", None]),
        ("freeze", {"layers": 2}),
        ("unfreeze", 0.0),
        ("patience", 0),
        ("min_delta", -0.1),
    ],
)
def test_settings_that_cannot_work_are_refused_by_their_key(key, value):
    check_settings(TrainSettings())
    with pytest.raises(UserError, match=rf"train\.{key}: must"):
        check_settings(TrainSettings(**{key: value}))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rank", 0),
        ("alpha", 0.0),
        ("dropout", 1.0),
        ("dropout", -0.1),
        ("targets", []),
        ("targets", ""),
        ("targets", [2]),
    ],
)
def test_adapters_that_cannot_work_are_refused_by_their_key(key, value):
    with pytest.raises(UserError, match=rf"train\.lora\.{key}: must"):
        check_settings(TrainSettings(lora=LoraSettings(**{key: value})))


@pytest.mark.parametrize("value", [None, 0, 4, "*.bias", [0], [2, "*.bias"]])
def test_what_may_be_frozen(value):
    check_settings(TrainSettings(freeze=value))


def rates_of(model, settings: TrainSettings, folder: Path) -> dict[str, float]:
    """Return name → learning rate at the full rate, of a model that is trained as a student."""
    tuning = Tuning(model, settings, encoded(folder, model.task, count=4).batch([0]), steps=10)
    optimizer = make_optimizer(model, settings, tuning.scales)
    set_learning_rate(optimizer, settings.learning_rate)
    names = {id(parameter): name.removeprefix("model.") for name, parameter in model.named_parameters()}
    return {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}


def test_the_rate_falls_from_level_to_level(tmp_path):
    """By hand: the head and pooler 1, layer 1 0.5, layer 0 0.25, the embeddings 0.125."""
    rates = rates_of(classifier(), TrainSettings(learning_rate=1.0, layer_decay=0.5), tmp_path)
    expected = {"classifier": 1.0, "bert.pooler": 1.0, "bert.encoder.layer.1": 0.5, "bert.encoder.layer.0": 0.25}
    expected["bert.embeddings"] = 0.125
    assert len(rates) == len(list(classifier().parameters()))
    for name, rate in rates.items():
        assert rate == next(value for prefix, value in expected.items() if name.startswith(f"{prefix}.")), name
    rates = rates_of(language_model(), TrainSettings(learning_rate=2.0, layer_decay=0.5), tmp_path)
    assert (rates["lm_head.weight"], rates["model.norm.weight"], rates["model.embed_tokens.weight"]) == (2.0, 2.0, 0.25)


def test_the_head_has_its_own_rate_whatever_the_decay(tmp_path):
    settings = TrainSettings(learning_rate=0.25, head_learning_rate=4.0, layer_decay=0.5)
    rates = rates_of(classifier(), settings, tmp_path)
    assert (rates["classifier.weight"], rates["classifier.bias"]) == (4.0, 4.0)
    assert (rates["bert.pooler.dense.weight"], rates["bert.encoder.layer.1.output.dense.bias"]) == (0.25, 0.125)


def test_projectors_are_trained_at_the_full_rate(tmp_path):
    projector = torch.nn.Linear(2, 2)
    student = classifier()
    settings = TrainSettings(learning_rate=1.0, layer_decay=0.5, head_learning_rate=3.0, freeze=2)
    tuning = Tuning(student, settings, encoded(tmp_path, student.task, count=4).batch([0]), steps=10)
    optimizer = make_optimizer(torch.nn.ModuleList([student, projector]), settings, tuning.scales)
    set_learning_rate(optimizer, 0.5)
    of = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert [of[id(parameter)] for parameter in projector.parameters()] == [0.5, 0.5]
    assert of[id(student.model.classifier.weight)] == 1.5
