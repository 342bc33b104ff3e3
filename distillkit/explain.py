"""Say in one line what Hydra, OmegaConf or PyYAML found wrong with a config."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from distillkit.errors import UserError, did_you_mean

EXPECTED = (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError, OSError, RecursionError)


def explain(error: Exception, folders: list[Path]) -> UserError:
    """Translate an error of composing a config, looking for the files it names in `folders`."""
    chain = list(_chain(error))
    file = _file(chain, folders)
    for link in chain:
        if isinstance(link, MissingConfigException):
            return _missing_config(link, folders)
        if isinstance(link, OverrideParseException):
            return UserError(
                f"cannot read the override: {link.message.splitlines()[0]}",
                where=link.override,
                fix="quote values with special characters: 'key=\"a,b\"'",
            )
        if isinstance(link, RecursionError):
            return UserError("mappings or lists are nested too deeply", where=file)
        if isinstance(link, yaml.MarkedYAMLError) and link.problem_mark:
            mark = link.problem_mark
            return UserError(f"broken YAML: {link.problem}", where=f"{mark.name}:{mark.line + 1}")
    for link in chain:
        if isinstance(link, OmegaConfBaseException):
            return explain_value(link, prefix=f"{file}: " if file else "")
    unmatched = re.search(r"Could not override '([^']+)'. No match in the defaults list", str(error))
    if unmatched:
        return _no_group(unmatched[1], folders, where=file)
    fix = "write [a,b] for a list, or add -m to sweep over the values" if "Ambiguous value" in str(error) else None
    return UserError(_first_line(error), where=file, fix=fix)


def explain_value(error: OmegaConfBaseException, prefix: str = "") -> UserError:
    """Translate an error about one key of a config; `prefix` stands before the key."""
    where = f"{prefix}{error.full_key}" if error.full_key else prefix.removesuffix(": ").removesuffix(".") or None
    if isinstance(error, ConfigKeyError | ConfigAttributeError) and isinstance(error.parent_node, DictConfig):
        known = [str(key) for key in error.parent_node if key not in ("hydra", "defaults")]
        near = did_you_mean(str(error.key), known)
        return UserError("unknown key", where=where, fix=near or f"write +{error.full_key}=… to add it")
    missing = re.search(r"MissingMandatoryValue .* Missing mandatory value: (\S+)", str(error.msg))
    if missing or isinstance(error, MissingMandatoryValue):
        key = missing[1] if missing else error.full_key
        return UserError("needs a value", where=f"{prefix}{key}", fix=f"set {key}=…")
    return UserError(_plainer(_first_line(error.msg or error)), where=where)


def _plainer(message: str) -> str:
    """Say "expected int, got 'x'" instead of OmegaConf's sentence."""
    types = {"Integer": "int", "Float": "float", "Boolean": "bool", "String": "str"}
    found = re.match(r"Value (.*) (?:of type .* could not be converted|is not a valid \w+).* to (\w+)", message)
    return f"expected {types.get(found[2], found[2])}, got {found[1]}" if found else message


def _missing_config(error: MissingConfigException, folders: list[Path]) -> UserError:
    wanted = error.missing_cfg_file or ""
    group, _, option = wanted.rpartition("/")
    if not group:
        return UserError(f"no config '{wanted}'", fix="see `distillkit recipes`")
    options = error.options or [path.stem for folder in folders for path in (folder / group).glob("*.yaml")]
    if options:
        return UserError(f"no option '{option}'", where=group, fix=did_you_mean(option, list(options)))
    return _no_group(group, folders)


def _no_group(group: str, folders: list[Path], where: str | None = None) -> UserError:
    groups = [path.name for folder in folders for path in folder.iterdir() if path.is_dir()]
    return UserError(f"no config group '{group}'", where=where, fix=did_you_mean(group, groups))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and what caused it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _file(chain: list[BaseException], folders: list[Path]) -> str | None:
    """Find the config file that Hydra's message names: In 'train/mine': ..."""
    for link in chain:
        named = re.match(r"In '([^']+)'", str(link)) if isinstance(link, ConfigCompositionException) else None
        if named:
            files = [folder / f"{named[1]}.yaml" for folder in folders]
            return next((_shown(file) for file in files if file.is_file()), named[1])
    return None


def _shown(file: Path) -> str:
    here = Path.cwd()
    return str(file.relative_to(here) if file.is_relative_to(here) else file)


def _first_line(error: Any) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
