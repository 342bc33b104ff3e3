"""Freeze a config: resolve, check and type it; write it as YAML, read it back, compare two of them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from decimal import Decimal
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import DictConfig, OmegaConf

from distillkit.schema import Config

DECIDES = {  # command → the sections that its outcome depends on
    "train": ("task", "dataset", "teacher", "student", "loss", "train"),
    "eval": ("task", "dataset", "evaluate"),
    "generate-pseudo": ("task", "dataset", "teacher", "generate"),
    "compress": ("task", "dataset", "teacher", "loss", "train", "evaluate", "compress"),
}
HOW = ("cache", "num_workers")  # keys of a dataset that change how rows are encoded, not the outcome
ALWAYS = ("name", "output_dir", "root_dir", "resume", "overwrite", "train", "launch", "tracker", "upstream")


@dataclass(frozen=True)
class StageJob:
    """One stage of `run`, ready to start."""

    name: str
    command: str
    config: Config


def register_resolvers() -> None:
    """Make `${one_minus:x}` known to YAML: 1 - x without the noise of binary fractions."""
    OmegaConf.register_new_resolver("one_minus", lambda x: float(1 - Decimal(str(x))), replace=True)


def typed(cfg: DictConfig, command: str) -> Config:
    """Resolve what a command needs of a composed config and type it: sections are dataclasses, nodes plain mappings.

    The other sections stay empty: `eval` does not ask for a student's path, and `run` for nothing that its stages fill.

    Raises:
        OmegaConfBaseException: A key is unknown, or a value is missing, of a wrong type, or refers to nothing.
    """
    checked = OmegaConf.merge(_schema(), OmegaConf.to_container(cfg, resolve=False))
    return _to_config(checked, [*ALWAYS, *DECIDES.get(command, ())])


def freeze(config: Config) -> str:
    """Write a typed config as YAML that `load` reads back unchanged."""
    return OmegaConf.to_yaml(OmegaConf.create(_escape(plain(config))))


def load(path: Path) -> Config:
    """Read what `freeze` wrote."""
    frozen = OmegaConf.load(path)
    return _to_config(frozen, list(frozen))


def plain(config: Config) -> dict[str, Any]:
    """Turn a config into mappings, lists and scalars."""
    return asdict(config, dict_factory=lambda items: {key: v.value if isinstance(v, Enum) else v for key, v in items})


def digest(config: Config, command: str) -> str:
    """Hash the sections that decide what a command's outcome is."""
    return hashlib.sha256(yaml.safe_dump(_deciding(config, command), sort_keys=False).encode()).hexdigest()


def differences(old: Config, new: Config, command: str) -> list[str]:
    """List what differs among the deciding sections, such as "train.max_steps: 500 -> 600"."""
    before, after = dict(leaves(_deciding(old, command))), dict(leaves(_deciding(new, command)))
    return [
        f"{key}: {before.get(key, '(absent)')} -> {after.get(key, '(absent)')}"
        for key in {**before, **after}
        if before.get(key, "(absent)") != after.get(key, "(absent)")
    ]


def _deciding(config: Config, command: str) -> dict[str, Any]:
    values = plain(config)
    values["dataset"] = {key: value for key, value in (values["dataset"] or {}).items() if key not in HOW}
    return {key: values[key] for key in (*DECIDES[command], "upstream")}


def leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every scalar (or empty container) of nested mappings and lists with its dotted key."""
    if value and isinstance(value, dict | list):
        for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(inner, f"{key}.{name}" if key else str(name))
    else:
        yield key, value


@cache
def _schema() -> Any:
    """Return the typed config without values; merging copies it."""
    return OmegaConf.structured(Config)


def _to_config(cfg: Any, keys: list[str]) -> Config:
    resolved = {key: _resolved(cfg[key]) for key in keys}
    return cast(Config, OmegaConf.to_object(OmegaConf.merge(_schema(), _escape(resolved))))


def _resolved(value: Any) -> Any:
    if OmegaConf.is_config(value):
        return OmegaConf.to_container(value, resolve=True, throw_on_missing=True)
    return value


def _escape(value: Any) -> Any:
    """Keep a literal "${" from being read as an interpolation."""
    if isinstance(value, dict):
        return {key: _escape(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_escape(inner) for inner in value]
    return re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + r"\${", value) if isinstance(value, str) else value
