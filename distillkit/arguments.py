"""What may stand on the command line and what it means: commands, flags, overrides, recipes. Standard library only."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from distillkit.errors import UserError, did_you_mean

COMMANDS = {
    "run": "the whole recipe: its stages in order, finished ones skipped, one report at the end",
    "train": "train a student: with a teacher (distillation) or without one (fine-tuning)",
    "eval": "compare models side by side: quality with intervals and tests, likeness, size, memory, speed",
    "generate-pseudo": "let the teacher label or write data that train can read, or keep its outputs for training",
    "compress": "apply a chain of steps to a model and measure before and after each",
    "doctor": "try what this installation and machine can do; with a recipe, estimate its memory and hours",
}
TOOLS = {
    "recipes": "list the recipes with their purpose",
    "completion": "print a completion script for bash, zsh or fish",
}
VALUED = ("-c", "--cfg", "-p", "--package", "-cp", "--config-path", "-cn", "--config-name", "-cd", "--config-dir")
INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
SHOWING = ("--cfg", "--resolve", "--package", "--info", "--help", "--hydra-help", "--version", "--traceback")
OWN_FLAGS = {"doctor": ("--json",)}  # command → flags that only it knows
FLAGS = (*SHOWING, "--multirun", "--config-dir", "--config-name")


@dataclass
class Arguments:
    """What stands behind COMMAND, sorted; order is kept within each kind."""

    positional: list[str] = field(default_factory=list)
    overrides: list[str] = field(default_factory=list)
    flags: list[str] = field(default_factory=list)

    def value(self, *names: str) -> str | None:
        """Return the value of a flag, given its names."""
        for position, flag in enumerate(self.flags):
            name, equals, value = flag.partition("=")
            if name in names:
                return value if equals else "".join(self.flags[position + 1 : position + 2])
        return None


def _is_file(token: str) -> bool:
    try:
        return Path(token).is_file()
    except OSError:  # longer than a name may be
        return False


def sort(tokens: list[str]) -> Arguments:
    """Sort tokens into positional ones, overrides and flags (with their values), so that flags may stand anywhere."""
    arguments = Arguments()
    waiting = list(tokens)
    while waiting:
        token = waiting.pop(0)
        if token.startswith("-"):
            arguments.flags.append(token)
            takes_value = token in VALUED or (token in ("--info", "-i") and waiting and waiting[0] in INFO)
            if takes_value and waiting:
                arguments.flags.append(waiting.pop(0))
        elif token.startswith(("+", "~")) or ("=" in token and not _is_file(token)):
            arguments.overrides.append(token)
        else:
            arguments.positional.append(token)
    return arguments


def find_recipe(arguments: Arguments) -> tuple[str, Path | None]:
    """Return the config name of the recipe and, for a path, the folder that it lies in."""
    if not arguments.positional:
        return "config", None
    recipe, *others = arguments.positional
    if others:
        raise UserError(f"unexpected argument '{others[0]}'", fix=f"write KEY=VALUE; the recipe is '{recipe}' already")
    if arguments.value("--config-name", "-cn"):
        raise UserError(f"both a recipe ('{recipe}') and --config-name", fix="give one of them")
    if os.sep in recipe or recipe.endswith((".yaml", ".yml")):
        return _recipe_file(Path(recipe))
    own = arguments.value("--config-dir", "-cd")
    if recipe in recipe_files() or (own and (Path(own) / f"{recipe}.yaml").is_file()):
        return recipe, None
    raise UserError(f"unknown recipe '{recipe}'", fix=did_you_mean(recipe, list(recipe_files())))


def _recipe_file(path: Path) -> tuple[str, Path]:
    if not path.is_file():
        raise UserError("no such recipe file", where=str(path))
    if path.suffix != ".yaml" or path.stem == "config":
        raise UserError("a recipe is a file NAME.yaml, and NAME is not 'config'", where=str(path), fix="rename it")
    return path.stem, path.resolve().parent


def data_folder(name: str) -> Path:
    """Return the folder `configs` or `recipes`: beside the installed package, else in the checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "_data" / name
    return installed if installed.is_dir() else package.parent / name


def recipe_files() -> dict[str, Path]:
    """Return the recipes that come with distillkit, by name."""
    return {path.stem: path for path in sorted(data_folder("recipes").glob("*.yaml"))}
