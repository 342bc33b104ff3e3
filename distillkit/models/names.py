"""Choose parts of a model by the names of its modules and parameters."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any

from distillkit.errors import UserError


def as_list(value: Any) -> list[Any]:
    """Return a list as it is, anything else as a list of one, and nothing for None."""
    return value if isinstance(value, list) else [] if value is None else [value]


def matching(names: Iterable[str], patterns: list[str], key: str) -> set[str]:
    """Return the names that match a shell-style pattern, or that lie inside a module that does.

    "*.attention.*", "bert.pooler" and "*.layer.0" are patterns; the last one does not take layer 10.

    Raises:
        UserError: If a pattern matches nothing.
    """
    everything = {name: _paths(name) for name in names}
    chosen: set[str] = set()
    for pattern in patterns:
        hits = {name for name, paths in everything.items() if any(fnmatchcase(path, pattern) for path in paths)}
        if not hits:
            examples = ", ".join(list(everything)[-3:])
            raise UserError(f"nothing is named '{pattern}'", where=key, fix=f"there are, for example, {examples}")
        chosen |= hits
    return chosen


def _paths(name: str) -> list[str]:
    """Return a name and the modules around it, innermost first."""
    parts = name.split(".")
    return [".".join(parts[:length]) for length in range(len(parts), 0, -1)]
