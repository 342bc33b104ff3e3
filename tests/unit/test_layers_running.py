"""Layers that are computed again or compiled give what they gave before, and are themselves again in the end."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from distillkit.errors import UserError
from distillkit.losses.attention import AttentionKL
from distillkit.losses.hidden import HiddenMSE
from distillkit.losses.objective import Objective
from distillkit.losses.relations import RelationKL
from distillkit.losses.task import CrossEntropy
from distillkit.models.anatomy import layer_stack, shape_of
from distillkit.models.teachers import FrozenModel
from distillkit.training.loop import fit
from distillkit.training.run import Run
from tests.tiny import classifier, encoded, language_model, training

LOSSES = {
    "logits": lambda: CrossEntropy(),
    "hidden": lambda: HiddenMSE(),
    "attention": lambda: AttentionKL(),
    "relations": lambda: RelationKL(),
}


def run(folder, loss: str, kind=classifier, **settings) -> Run:
    student, teacher = kind(layers=2), kind(layers=2, seed=7)
    made = training(folder, student, teacher, encoded(folder / "data", student.task), max_steps=3, **settings)
    made.objective = Objective({"it": {"weight": 1.0, "loss": LOSSES[loss]()}})
    made.objective.bind(shape_of(student.model.config), shape_of(teacher.model.config))
    made.teacher = FrozenModel(teacher, made.objective.wanted_of_teacher)
    made.evaluate = None
    return made


def calls(made: Run) -> list[int]:
    """Count how often the first layer's attention runs with gradients."""
    layer = made.student.model.get_submodule(layer_stack(made.student.model, ""))[0]
    linear = next(module for module in layer.modules() if isinstance(module, torch.nn.Linear))
    seen: list[int] = []
    linear.register_forward_pre_hook(lambda *_: seen.append(1) if torch.is_grad_enabled() else None)
    return seen


def weights(made: Run) -> dict[str, torch.Tensor]:
    return made.student.model.state_dict()


@pytest.mark.parametrize("kind", [classifier, language_model])
@pytest.mark.parametrize("loss", LOSSES)
def test_layers_computed_again_give_the_same(tmp_path, loss, kind):
    plain = run(tmp_path / "plain", loss, kind)
    again = run(tmp_path / "again", loss, kind, activation_checkpointing=True)
    once, twice = calls(plain), calls(again)
    for made in (plain, again):
        fit(made)
    assert len(twice) == 2 * len(once) == 6
    assert all(torch.equal(tensor, weights(plain)[name]) for name, tensor in weights(again).items())
    assert "forward" not in vars(again.student.model.get_submodule(layer_stack(again.student.model, ""))[0])


def test_compiled_layers_give_the_same(tmp_path, monkeypatch):
    """Up to the making of machine code, which takes a minute."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    plain, compiled = run(tmp_path / "plain", "hidden"), run(tmp_path / "compiled", "hidden", compile=True)
    for made in (plain, compiled):
        fit(made)
    for name, tensor in weights(compiled).items():
        torch.testing.assert_close(tensor, weights(plain)[name], rtol=1e-4, atol=1e-4)
    assert "forward" not in vars(compiled.student.model.get_submodule(layer_stack(compiled.student.model, ""))[0])


def test_what_is_compiled_cannot_be_looked_into(tmp_path):
    with pytest.raises(UserError, match=r"^train\.compile: a loss looks at layers\.0\.key, inside"):
        fit(run(tmp_path, "attention", compile=True))


def test_a_machine_without_a_compiler_is_told_so(tmp_path, monkeypatch):
    def refuse(*_):
        raise RuntimeError("no C++ compiler\nlong story")

    monkeypatch.setattr(torch, "compile", lambda *_: refuse)
    with pytest.raises(UserError, match=r"^train\.compile: torch\.compile does not work here \(no C\+\+ compiler\); "):
        fit(run(tmp_path, "logits", compile=True))
