"""Hydra → one frozen, validated config → the launcher. Imports no torch."""

from __future__ import annotations

import atexit
import gc
import os
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig

from distillkit import sweep
from distillkit.arguments import FLAGS, data_folder
from distillkit.errors import UserError, did_you_mean, report
from distillkit.explain import EXPECTED, explain
from distillkit.freeze import register_resolvers, typed
from distillkit.schema import Config
from distillkit.tuning.sweeper import Optuna

OPTUNA = "hydra_plugins.distillkit.Optuna"  # Hydra takes sweepers from this package only, by name
HYDRA = (  # Hydra writes nothing of its own, whatever a recipe builds on
    "hydra.run.dir=.",
    "hydra.output_subdir=null",
    "hydra.sweep.dir=${output_dir}",
    "hydra/job_logging=none",
    "hydra/hydra_logging=none",
)


class Folders(SearchPathPlugin):
    """Let Hydra find recipes, and the configs beside a recipe that was given by its path."""

    folders: ClassVar[list[Path]] = []

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append the folders after distillkit's own configs."""
        for folder in self.folders:
            search_path.append(provider="recipes", path=f"file://{folder}")


def main(command: str, name: str, folders: list[Path], arguments: list[str], own: tuple[str, ...] = ()) -> int:
    """Compose the config `name` and run a command with it: once, or once for each job of a sweep.

    Args:
        command: A command of the command line.
        name: The recipe's config name.
        folders: Where to look for it, besides distillkit's own recipes.
        arguments: Flags and overrides for Hydra, flags first.
        own: Flags of the command itself.

    Returns:
        The exit code.

    Raises:
        UserError: The config cannot be composed.
    """
    atexit.register(gc.freeze)  # or Python looks at every object of torch once more as it ends, which takes a second
    flags = check_flags(arguments)
    first = len(arguments) - len(flags.overrides)
    prepare(folders)
    sweep.begin(command)
    codes, seen = [0], set()

    def job(cfg: DictConfig) -> Exception | None:
        try:
            run_job(command, cfg, own)
        except Exception as error:  # Hydra would print it its own way
            if not sweep.Sweep.searching:
                codes.append(report(error) if str(error) not in seen else 0)
            seen.add(str(error))
            return error
        return None

    try:
        with _hydra_raises(["distillkit", *arguments[:first], *HYDRA, *arguments[first:]]):
            hydra.main(config_path=str(data_folder("configs")), config_name=name, version_base="1.3")(job)()
    except EXPECTED as error:
        codes.append(2)
        given = [Path(flags.config_dir).resolve()] if flags.config_dir else []
        raise explain(error, [data_folder("configs"), *Folders.folders, *given]) from error
    finally:
        if max(codes):
            sweep.tidy()
    return max(codes)


def prepare(folders: list[Path]) -> None:
    """Register the schema, the resolvers and the search path with Hydra."""
    register_resolvers()
    ConfigStore.instance().store(name="schema", node=Config)
    Folders.folders = [*folders, data_folder("recipes")]
    Plugins.instance().register(Folders)
    Plugins.instance().class_name_to_class[OPTUNA] = Optuna


def check_flags(arguments: list[str]) -> Namespace:
    """Parse Hydra's flags so that a mistake costs one line and not a usage text."""
    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        wrong = message.removeprefix("unrecognized arguments: ").split()[0]
        raise UserError(message, fix=did_you_mean(wrong, list(FLAGS)) if wrong.startswith("-") else None)

    parser.error = refuse
    flags = parser.parse_args(arguments)
    if flags.resolve and not (flags.cfg or flags.help):
        raise UserError("--resolve goes with --cfg", fix="write --cfg job --resolve")
    if sum(map(bool, (flags.cfg, flags.multirun, flags.info, flags.run))) > 1:
        raise UserError("only one of --cfg, --multirun, --info and --run can be given")
    return flags


def run_job(command: str, cfg: DictConfig, own: tuple[str, ...] = ()) -> None:
    """Freeze the config of one run, or of one job of a sweep, and start the command with it."""
    from distillkit import launch

    if "output_dir" not in cfg:
        raise UserError(
            "the recipe does not build on distillkit's config", fix="begin it with defaults: [config, _self_]"
        )
    sweep.settle(cfg)
    launch.start(command, *resolve(command, cfg), *own)


def resolve(command: str, cfg: DictConfig) -> tuple[Any, ...]:
    """Return what the command takes: a typed config, for `run` the stages and for `doctor` the trainings."""
    try:
        if command == "run":
            from distillkit.stages import resolve_stages

            return typed(cfg, command), resolve_stages(cfg)
        if command == "doctor":
            from distillkit.stages import resolve_trainings

            return typed(cfg, command), resolve_trainings(cfg)
        return (typed(cfg, command),)
    except EXPECTED as error:
        raise explain(error, [data_folder("configs"), *Folders.folders]) from error


@contextmanager
def _hydra_raises(argv: list[str]) -> Iterator[None]:
    """Lend Hydra a command line and make it raise its errors instead of printing them."""
    before = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv, os.environ["HYDRA_FULL_ERROR"] = argv, "1"
    try:
        yield
    finally:
        GlobalHydra.instance().clear()
        sys.argv = before[0]
        if before[1] is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = before[1]
