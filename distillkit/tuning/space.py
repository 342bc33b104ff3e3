"""The space of a search: what Hydra's syntax for sweeps means to Optuna, and values as they stand on a command line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from distillkit.errors import UserError

DIGITS = 4  # of a number that was drawn: more decide nothing, and are a burden to read and to type
Space = dict[str, BaseDistribution]  # key, as on the command line → what may be drawn


def space_of(overrides: list[Override]) -> Space:
    """Return what is searched, by key.

    `a,b,c` and `choice(…)` are choices without an order; `range(1,5)` is whole numbers (or steps) with one;
    `interval(a,b)` is every number in between, on a logarithmic scale with `tag(log,…)`, whole ones with `tag(int,…)`.
    """
    return {override.get_key_element(): _distribution(override) for override in overrides}


def _distribution(override: Override) -> BaseDistribution:
    sweep, key = override.value(), override.get_key_element()
    try:
        if isinstance(sweep, IntervalSweep):
            return _interval(sweep)
        if isinstance(sweep, RangeSweep):
            return _range(sweep)
        return CategoricalDistribution(list(dict.fromkeys(override.sweep_string_iterator())))
    except ValueError as error:
        raise UserError(f"cannot be searched: {error}", where=key, fix="see Tuning in the README") from error


def _interval(sweep: IntervalSweep) -> BaseDistribution:
    unknown = sweep.tags - {"log", "int", "float"}
    if unknown:
        raise ValueError(f"unknown tag '{unknown.pop()}', known are log and int")
    assert sweep.start is not None
    assert sweep.end is not None
    if not sweep.start < sweep.end:
        raise ValueError(f"{sweep.start:g} is not below {sweep.end:g}")
    log = "log" in sweep.tags
    if "int" in sweep.tags:
        return IntDistribution(int(sweep.start), int(sweep.end), log=log)
    return FloatDistribution(float(sweep.start), float(sweep.end), log=log)


def _range(sweep: RangeSweep) -> BaseDistribution:
    values = [value for value in sweep.range() if value is not None]
    if not values:
        raise ValueError("the range is empty")
    low, high, step = min(values), max(values), abs(sweep.step)
    if all(isinstance(value, int) for value in values):
        return IntDistribution(int(low), int(high), step=int(step))
    return FloatDistribution(float(low), float(high), step=float(step))


def written(value: Any) -> str:
    """Write a value as it stands behind KEY= on the command line."""
    return f"{value:.{DIGITS}g}" if isinstance(value, float) else str(value)


def examples(space: Space) -> Iterator[list[str]]:
    """Yield overrides that together have every choice, and of each range a number."""
    usual = {key: _choices(distribution)[0] for key, distribution in space.items()}
    for key, distribution in space.items():
        for value in _choices(distribution)[1:]:
            yield _overrides(usual | {key: value})
    yield _overrides(usual)


def _choices(distribution: BaseDistribution) -> Sequence[Any]:
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    return [distribution.low]


def _overrides(values: Mapping[str, Any]) -> list[str]:
    return [f"{key}={written(value)}" for key, value in values.items()]


def own_values(space: Space, found: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of the recipe's own values that lie in the space, as they are drawn from it.

    Args:
        space: What is searched.
        found: Key → the recipe's value; None where it has none.
    """
    kept = {}
    for key, distribution in space.items():
        value = _drawn_as(distribution, found.get(key))
        if value is not None:
            kept[key] = value
    return kept


def _drawn_as(distribution: BaseDistribution, value: Any) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return {_plain(choice): choice for choice in distribution.choices}.get(_plain(value))
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    whole = isinstance(distribution, IntDistribution)
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        return None
    if not distribution.low <= value <= distribution.high:
        return None
    steps = (value - distribution.low) / (distribution.step or 1)
    return None if distribution.step and abs(steps - round(steps)) > 1e-6 else value


def _plain(value: Any) -> str:
    """Write a value so that two ways to type it are one."""
    return "null" if value is None else str(value).replace(" ", "").lower()


def scale(distribution: BaseDistribution) -> str:
    """Tell how a key is best shown: "log", "linear" or, where its values have no order, "choice"."""
    if isinstance(distribution, CategoricalDistribution):
        return "choice"
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    return "log" if distribution.log else "linear"
