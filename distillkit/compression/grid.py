"""From a list of steps and a grid of their arguments to a tree of variants that share what they begin with."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from distillkit.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Branch:
    """A variant to make, and those that are made of it.

    Attributes:
        name: Of the variant.
        step: The name of the last step.
        node: What to build the step of.
        after: Next variants.
    """

    name: str
    step: str
    node: dict[str, Any]
    after: list[Branch] = field(default_factory=list)


def expand(steps: Mapping[str, Any], grid: Mapping[str, Any]) -> list[Branch]:
    """Make the tree: one chain without a grid, and one for every combination of the grid's values with it.

    Args:
        steps: Name → node, in order; null for a step that is left out.
        grid: Step → argument → its values; or step → [true, false], with and without it.

    Raises:
        UserError: If a key names no step or no argument, or has no values.
    """
    chosen = {name: node for name, node in steps.items() if node is not None}
    choices = dict(_choices(grid, chosen))
    roots: list[Branch] = []
    for combination in product(*choices.values()):
        level, names = roots, []
        for step, node in _chain(chosen, dict(zip(choices, combination, strict=True))):
            names.append(step.name)
            name = "-".join(names) if grid else step.name
            branch = next((known for known in level if known.name == name), None)
            if branch is None:
                branch = Branch(name, step.step, node)
                level.append(branch)
            level = branch.after
    return roots


def paths(branches: list[Branch], before: tuple[Branch, ...] = ()) -> Iterator[tuple[Branch, ...]]:
    """Yield every chain from the root to a last variant."""
    for branch in branches:
        if branch.after:
            yield from paths(branch.after, (*before, branch))
        else:
            yield (*before, branch)


@dataclass(frozen=True)
class _Named:
    step: str
    name: str


def _chain(steps: Mapping[str, Any], values: Mapping[str, Any]) -> Iterator[tuple[_Named, dict[str, Any]]]:
    for step, node in steps.items():
        own = {key.partition(".")[2]: value for key, value in values.items() if key.partition(".")[0] == step}
        if own.pop("", True) is False:
            continue
        name = "-".join([step, *(_written(value) for value in own.values())])
        yield _Named(step, name), {**node, **own}


def _written(value: Any) -> str:
    return re.sub(r"[^\w.]+", "_", str(value)).strip("_")


def _choices(grid: Mapping[str, Any], steps: Mapping[str, Any]) -> Iterator[tuple[str, list[Any]]]:
    """Yield "step.argument", or "step" for one that may be left out, with the values to try."""
    for step, inner in grid.items():
        where = f"compress.grid.{step}"
        if step not in steps:
            raise UserError(f"there is no step '{step}'", where=where, fix=did_you_mean(step, list(steps)))
        if isinstance(inner, list) and inner and all(isinstance(value, bool) for value in inner):
            yield step, inner
            continue
        if not isinstance(inner, Mapping):
            raise UserError(f"needs [true, false] or argument → values, got {inner!r}", where=where)
        for argument, values in inner.items():
            if not isinstance(values, list) or not values:
                raise UserError(f"needs a list of values, got {values!r}", where=f"{where}.{argument}")
            yield f"{step}.{argument}", values
