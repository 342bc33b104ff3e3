"""Nodes: what is trusted, what a class accepts, and what is built."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from distillkit.build import build, check, fits
from distillkit.errors import UserError
from distillkit.losses.divergences import ForwardKL
from distillkit.losses.objective import Objective

MINE = """
from __future__ import annotations
import os
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from distillkit.errors import UserError
if TYPE_CHECKING:
    from somewhere import Ghost

made = []

@dataclass
class Part:
    size: int
    mode: Literal["a", "b"] = "a"
    rates: list[float] = field(default_factory=list)
    table: dict[str, int] = field(default_factory=dict)
    inner: Part | None = None
    extra: Any = None
    def __post_init__(self):
        made.append(self.size)
        if self.size < 0:
            raise UserError("must not be negative", where="size")

class Haunted:
    def __init__(self, ghost: Ghost, **rest: int) -> None:
        self.ghost, self.rest = ghost, rest

def function():
    raise AssertionError("called")
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "minepkg").mkdir()
    (tmp_path / "minepkg/__init__.py").write_text("")
    (tmp_path / "minepkg/parts.py").write_text(MINE)
    (tmp_path / "minepkg/needy.py").write_text("import not_installed_anywhere\n")
    (tmp_path / "minepkgevil.py").write_text("raise AssertionError('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("DISTILLKIT_TRUST", "otherpkg, minepkg")
    yield
    for name in [name for name in sys.modules if name.startswith("minepkg")]:
        del sys.modules[name]


def objective(**loss: Any) -> dict[str, Any]:
    inner = {"_target_": "distillkit.losses.divergences.ForwardKL", "temperature": 2.0, **loss}
    return {"_target_": "distillkit.losses.objective.Objective", "terms": {"kd": {"weight": 1.0, "loss": inner}}}


def part(**arguments: Any) -> dict[str, Any]:
    return {"_target_": "minepkg.parts.Part", **arguments}


def refused(node: Any, where: str) -> str:
    with pytest.raises(UserError) as error:
        check(node, where)
    with pytest.raises(UserError):
        build(node, where)
    return str(error.value)


def test_nested_nodes_are_built_at_any_depth(mine: None) -> None:
    built = build(objective(), "loss")
    assert isinstance(built, Objective)
    assert isinstance(built.losses[0], ForwardKL)
    node = part(size=1, inner=part(size=2), extra=[{"deep": part(size=3)}, {"plain": {"x": 1}}, {"_target_": None}])
    built = build(node, "student")
    assert (built.inner.size, built.extra[0]["deep"].size) == (2, 3)
    assert built.extra[1:] == [{"plain": {"x": 1}}, None]


@pytest.mark.parametrize("node", [{}, None, {"_target_": None}, {"_target_": None, "left": 1}])
def test_an_empty_node_is_none(node: Any) -> None:
    assert build(node, "teacher") is None


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.open",
        "torch.load",
        "distillkit.launch.start",
        "distillkit.app.Folders",
        "distillkit.worker.run",
        "distillkit.losses",
        "distillkit.lossesX.y.Z",
        "distillkit.data.files.Path",
        "distillkit.data.files.os.system",
        "distillkit.losses.divergences.torch",
        "distillkit.losses.divergences.torch.load",
        "distillkit.losses.divergences.Tensor",
        "minepkgevil.X",
        "minepkg.parts.os",
        "minepkg.parts.Path",
        "minepkg.parts.function",
        "minepkg.parts.made",
        "distillkit..losses",
        "eval('1')",
        "",
        7,
    ],
)
def test_what_is_not_a_class_of_a_trusted_package_is_refused(mine: None, target: object) -> None:
    assert refused({"_target_": target}, "loss").startswith("loss._target_: ")
    assert "minepkgevil" not in sys.modules


def test_trust_comes_from_the_environment_only(mine: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert build(part(size=1), "student").size == 1
    monkeypatch.delenv("DISTILLKIT_TRUST")
    assert "outside the trusted packages" in refused(part(size=1), "student")


def test_everything_is_checked_before_anything_is_built(mine: None) -> None:
    refused(part(size=1, inner=part(size="x")), "student")
    assert sys.modules["minepkg.parts"].made == []


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        (
            objective(temprature=1.0),
            "loss.terms.kd.loss: ForwardKL has no argument 'temprature'; did you mean 'temperature'?",
        ),
        (objective(temperature="hot"), "loss.terms.kd.loss.temperature: expected float or a Schedule node, got 'hot'"),
        (objective(temperature=True), "loss.terms.kd.loss.temperature: expected float or a Schedule node, got True"),
        (objective(_target_="distillkit.losses.divergences.ForwardK"), "did you mean 'ForwardKL'?"),
        (objective(_target_="distillkit.losses.divergence.ForwardKL"), "did you mean 'divergences'?"),
        ({"_target_": "distillkit.losses.objective.Objective"}, "loss: Objective needs 'terms'; set loss.terms"),
        ({"_traget_": "x"}, "loss: a node needs _target_"),
        (["x"], "loss: a node needs _target_"),
        (part(), "loss: Part needs 'size'"),
        (part(size=1.5), "loss.size: expected int, got 1.5"),
        (part(size=1, mode="c"), "loss.mode: expected 'a' or 'b', got 'c'"),
        (part(size=1, rates=[1, "x"]), "loss.rates: expected a list of float, got [1, 'x']"),
        (part(size=1, table={"a": "x"}), "loss.table.a: expected int, got 'x'"),
        (part(size=1, inner=3), "loss.inner: expected"),
        (part(size=part(size=1)), "loss.size: expected int"),
        (part(size=1, extra=[{"x": part(size="y")}]), "loss.extra.0.x.size: expected int, got 'y'"),
        ({"_target_": "minepkg.needy.X"}, "loss._target_: minepkg.needy needs the package 'not_installed_anywhere'"),
        ({"_target_": "otherpkg.X"}, "loss._target_: no module 'otherpkg'"),
    ],
)
def test_a_wrong_argument_is_named_with_its_key(mine: None, node: Any, expected: str) -> None:
    assert expected in refused(node, "loss")


def test_what_a_constructor_refuses_is_named_with_its_key(mine: None) -> None:
    with pytest.raises(UserError, match=r"^student\.inner: size: must not be negative$"):
        build(part(size=1, inner=part(size=-1)), "student")


def test_hints_that_only_a_type_checker_resolves_are_not_checked(mine: None) -> None:
    built = build({"_target_": "minepkg.parts.Haunted", "ghost": 1, "anything": 2}, "loss")
    assert (built.ghost, built.rest) == (1, {"anything": 2})


@pytest.mark.parametrize(
    ("value", "hint", "suits"),
    [
        (1, float, True),
        (1, bool, False),
        (True, int, False),
        (None, int | None, True),
        ("x", int | list[str], False),
        (["x"], int | list[str], True),
        ("x", Path, True),
        ({"a": [1]}, dict[str, list[int]], True),
        ({"a": ["b"]}, dict[str, list[int]], False),
        ("x", Objective, False),
        ({"_target_": "a.B"}, Objective, True),
        ({"_target_": "a.B"}, str, False),
    ],
)
def test_types(value: Any, hint: Any, suits: bool) -> None:
    assert fits(value, hint) is suits
