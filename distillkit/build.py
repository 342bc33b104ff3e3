"""Check a node's `_target_` and arguments, then build the object.

A `_target_` is `package.module.Class`. Only classes that are defined inside trusted packages are built, and only
trusted modules are imported: distillkit's own parts, and the packages that the environment variable DISTILLKIT_TRUST
lists (comma-separated). YAML cannot extend the list.
"""

from __future__ import annotations

import inspect
import os
import types
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, Literal, Union, get_args, get_origin

from distillkit.errors import UserError, did_you_mean

PARTS = ("tasks", "data", "models", "losses", "generation", "cache", "compression", "evaluation")
SCALARS = {int: (int,), float: (int, float), str: (str,), bool: (bool,), Path: (str,), type(None): (type(None),)}


def build(node: Mapping[str, Any] | None, where: str) -> Any:
    """Check a node with everything inside it, then build it, innermost first.

    Args:
        node: A mapping with `_target_` and the class's arguments.
        where: The node's key in the config, for messages.

    Returns:
        The object, or None for a node that is empty or whose `_target_` is null.

    Raises:
        UserError: The class is not trusted or not there, or refuses its arguments.
    """
    check(node, where)
    return _build(node or {"_target_": None}, where)


def check(node: Mapping[str, Any] | None, where: str) -> None:
    """Do everything that `build` does, except calling a class.

    Raises:
        UserError: As `build`.
    """
    if not node and isinstance(node, Mapping | None):
        return
    if not isinstance(node, Mapping) or "_target_" not in node:
        raise UserError("a node needs _target_, the class to build", where=where)
    _check(node, where)


def trusted() -> tuple[str, ...]:
    """Return the packages whose classes may be built."""
    named = (name.strip() for name in os.environ.get("DISTILLKIT_TRUST", "").split(","))
    return (*(f"distillkit.{part}" for part in PARTS), *filter(None, named))


def locate(target: object, where: str) -> type:
    """Import the class that a `_target_` names.

    Raises:
        UserError: It is not trusted, or not there.
    """
    where = f"{where}._target_"
    if not isinstance(target, str) or not all(part.isidentifier() for part in target.split(".")):
        raise UserError(f"must be package.module.Class, got {target!r}", where=where)
    if not _is_trusted(target):
        fix = f"trusted are {', '.join(trusted())} and what the environment variable DISTILLKIT_TRUST lists"
        raise UserError(f"'{target}' is outside the trusted packages", where=where, fix=fix)
    module_name, _, name = target.rpartition(".")
    module = _import(module_name, where)
    found = vars(module).get(name)
    if isinstance(found, type) and _is_trusted(f"{found.__module__}.{name}"):
        return found
    if found is not None:
        raise UserError(f"'{target}' is not a class of a trusted package", where=where)
    classes = [
        key for key, value in vars(module).items() if isinstance(value, type) and value.__module__ == module_name
    ]
    raise UserError(f"no class '{name}' in {module_name}", where=where, fix=did_you_mean(name, classes))


def _is_trusted(target: str) -> bool:
    return any(target.startswith(f"{package}.") for package in trusted())


def _import(name: str, where: str) -> types.ModuleType:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or name
        if name != missing and not name.startswith(f"{missing}."):
            raise UserError(f"{name} needs the package '{missing}'", where=where, fix="install it") from error
        near = did_you_mean(name.rpartition(".")[2], _siblings(name)) if missing == name else None
        raise UserError(f"no module '{missing}'", where=where, fix=near) from error


def _siblings(name: str) -> list[str]:
    parent = name.rpartition(".")[0]
    spec = import_module(parent).__spec__ if parent else None
    folders = spec.submodule_search_locations if spec else None
    return [module.name for module in iter_modules(folders)] if folders else []


def _check(value: Any, where: str) -> None:
    """Check every node inside a value."""
    if isinstance(value, Mapping) and value.get("_target_") is not None:
        _check_arguments(locate(value["_target_"], where), _arguments(value), where)
    for key, inner in _inside(value):
        _check(inner, f"{where}.{key}")


def _check_arguments(cls: type, arguments: dict[str, Any], where: str) -> None:
    parameters = _parameters(cls)
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    known = [name for name, parameter in parameters.items() if parameter.kind in named]
    open_ended = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    for name in arguments:
        if name not in known and not open_ended:
            fix = did_you_mean(name, known)
            raise UserError(f"{cls.__name__} has no argument '{name}'", where=where, fix=fix or "it takes none")
    for name in known:
        if name not in arguments and parameters[name].default is inspect.Parameter.empty:
            raise UserError(f"{cls.__name__} needs '{name}'", where=where, fix=f"set {where}.{name}")
    for name, value in arguments.items():
        hint = parameters[name].annotation if name in known else Any
        if not fits(value, hint):
            raise _misfit(value, hint, f"{where}.{name}")


def _parameters(cls: type) -> Mapping[str, inspect.Parameter]:
    """Return the parameters with their hints; hints that only a type checker can resolve stay strings, unchecked."""
    try:
        return inspect.signature(cls, eval_str=True).parameters
    except NameError:
        return inspect.signature(cls).parameters


def _misfit(value: Any, hint: Any, where: str) -> UserError:
    """Say what was expected, of a mapping that should be one at the first of its values that does not fit."""
    arms = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    for arm in arms if isinstance(value, Mapping) and "_target_" not in value else ():
        kind, inner = get_origin(arm), get_args(arm)
        if isinstance(kind, type) and issubclass(kind, Mapping):
            key = next(key for key in value if not fits(value[key], inner[1]))
            return _misfit(value[key], inner[1], f"{where}.{key}")
    return UserError(f"expected {_shown(hint)}, got {value!r}", where=where)


def fits(value: Any, hint: Any) -> bool:
    """Tell whether a YAML value suits a type hint; a hint that names a class of objects wants a node."""
    origin, inner = get_origin(hint), get_args(hint)
    is_node = isinstance(value, Mapping) and value.get("_target_") is not None
    if hint in (Any, object, inspect.Parameter.empty) or isinstance(hint, str):
        return True
    if origin in (Union, types.UnionType):
        return any(fits(value, arm) for arm in inner)
    if origin is Literal:
        return value in inner
    if hint in SCALARS:
        return isinstance(value, SCALARS[hint]) and (hint is bool or not isinstance(value, bool))
    kind = origin or hint
    if isinstance(kind, type) and issubclass(kind, Mapping):
        return isinstance(value, Mapping) and not is_node and all(fits(v, inner[1]) for v in value.values() if inner)
    if isinstance(kind, type) and issubclass(kind, Sequence):
        return isinstance(value, list) and all(fits(v, inner[0]) for v in value if inner)
    return is_node or value is None or not isinstance(kind, type)


def _build(value: Any, where: str) -> Any:
    if isinstance(value, Mapping):
        built = {key: _build(inner, f"{where}.{key}") for key, inner in value.items() if key != "_target_"}
        if "_target_" not in value:
            return built
        return None if value["_target_"] is None else _call(locate(value["_target_"], where), built, where)
    if isinstance(value, list):
        return [_build(inner, f"{where}.{index}") for index, inner in enumerate(value)]
    return value


def _call(cls: type, arguments: dict[str, Any], where: str) -> Any:
    try:
        return cls(**arguments)
    except UserError as error:
        if str(error).startswith(where):
            raise
        raise UserError(str(error), where=where) from error


def _arguments(node: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in node.items() if key != "_target_"}


def _inside(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, Mapping):
        yield from value.items()
    elif isinstance(value, list):
        yield from enumerate(value)


def _shown(hint: Any) -> str:
    """Say in a user's words what a type hint wants."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_shown(arm) for arm in inner)
    if origin is Literal:
        return " or ".join(repr(choice) for choice in inner)
    if hint is type(None):
        return "null"
    kind = origin or hint
    if isinstance(kind, type) and issubclass(kind, Mapping):
        return f"a mapping to {_shown(inner[1])}" if inner else "a mapping"
    if isinstance(kind, type) and issubclass(kind, Sequence) and kind is not str:
        return f"a list of {_shown(inner[0])}" if inner else "a list"
    return hint.__name__ if hint in SCALARS else f"a {getattr(hint, '__name__', hint)} node"
