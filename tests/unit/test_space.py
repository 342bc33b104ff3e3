"""What is searched: Hydra's syntax for sweeps, the recipe's own values in it, and how values are written."""

from __future__ import annotations

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from distillkit.errors import UserError
from distillkit.tuning.space import Space, examples, own_values, scale, space_of, written


def space(*overrides: str) -> Space:
    return space_of(OverridesParser.create().parse_overrides(list(overrides)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x=interval(1,8)", FloatDistribution(1, 8)),
        ("x=tag(log,interval(1e-5,1e-3))", FloatDistribution(1e-5, 1e-3, log=True)),
        ("x=tag(int,interval(2,6))", IntDistribution(2, 6)),
        ("x=tag(int,log,interval(1,64))", IntDistribution(1, 64, log=True)),
        ("x=range(1,5)", IntDistribution(1, 4)),
        ("x=range(2,9,3)", IntDistribution(2, 8, step=3)),
        ("x=range(0,1,0.25)", FloatDistribution(0, 0.75, step=0.25)),
        ("x=a,b,a", CategoricalDistribution(["a", "b"])),
        ("x=1,2.5,null", CategoricalDistribution(["1", "2.5", "null"])),
        ("x=[0,2],[0,1,2]", CategoricalDistribution(["[0,2]", "[0,1,2]"])),
    ],
)
def test_sweeps_become_distributions(text: str, expected: object) -> None:
    assert space(text) == {"x": expected}


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("x=interval(3,3)", "x: cannot be searched: 3 is not below 3"),
        ("x=tag(lin,interval(1,3))", "unknown tag 'lin'"),
        ("x=tag(log,interval(0,3))", "x: cannot be searched: "),
        ("x=range(5,1)", "the range is empty"),
    ],
)
def test_what_cannot_be_searched_is_refused(text: str, what: str) -> None:
    with pytest.raises(UserError, match=what):
        space(text)


@pytest.mark.parametrize(
    ("text", "own", "kept"),
    [
        ("x=interval(1,8)", 2.0, 2.0),
        ("x=interval(1,8)", 2, 2),
        ("x=interval(1,8)", 0.5, None),
        ("x=interval(1,8)", None, None),
        ("x=interval(0,8)", True, None),
        ("x=range(2,9,3)", 5, 5),
        ("x=range(2,9,3)", 6, None),
        ("x=range(2,9,3)", 5.0, None),
        ("x=range(0,1,0.25)", 0.5, 0.5),
        ("x=range(0,1,0.25)", 0.3, None),
        ("x=3,6", 6, "6"),
        ("x=3,6", 4, None),
        ("x=[0,2],[0,1,2]", [0, 1, 2], "[0,1,2]"),
        ("x=true,false", True, "True"),
        ("x=null,1", None, "null"),
    ],
)
def test_own_values_count_where_they_lie_in_the_space(text: str, own: object, kept: object) -> None:
    assert own_values(space(text), {"x": own}) == ({} if kept is None else {"x": kept})


def test_examples_have_every_choice_once() -> None:
    found = list(examples(space("a=x,y,z", "b=interval(1,2)", "c=p,q")))
    assert found == [
        ["a=y", "b=1", "c=p"],
        ["a=z", "b=1", "c=p"],
        ["a=x", "b=1", "c=q"],
        ["a=x", "b=1", "c=p"],
    ]


def test_numbers_are_written_so_that_they_can_be_typed() -> None:
    assert [written(value) for value in (3.14159265, 1.23456e-5, 7, "kd", 0.9)] == [
        "3.142",
        "1.235e-05",
        "7",
        "kd",
        "0.9",
    ]


def test_scales() -> None:
    found = space("a=x,y", "b=tag(log,interval(1,2))", "c=range(1,4)")
    assert [scale(found[key]) for key in "abc"] == ["choice", "log", "linear"]
