"""Hydra's `hydra/sweeper=optuna`: values are drawn, a training runs with them, and the next draws learn from it.

The published hydra-optuna-sweeper 1.3 needs an Optuna before 3.0 and forgets a search that was killed.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from distillkit import sweep
from distillkit.errors import UserError, did_you_mean, told
from distillkit.freeze import DECIDES, leaves

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from distillkit.tuning.study import Search

TRIED = 3  # trials that may fail before one has succeeded
HELP = "write ranges, such as 'loss.temperature=interval(1,8)'"


class Optuna(Sweeper):
    """Search for the values that do best on the validation split.

    Args:
        trials: How many in all.
        sampler: "tpe" or "random".
        startup: Trials that are drawn at random before tpe learns from them.
        recipe_first: Let the first trial have the recipe's own values, where they lie in the ranges.
        metric: Of the validation split; None: `train.best_metric`, else the task's own.
        seed: Of the draws.
        params: Key → range, as on the command line.
    """

    def __init__(
        self,
        trials: int,
        sampler: str,
        startup: int,
        recipe_first: bool,
        metric: str | None,
        seed: int,
        params: DictConfig,
    ) -> None:
        self.trials, self.startup, self.recipe_first, self.seed = trials, startup, recipe_first, seed
        self.sampler, self.metric = sampler, metric
        self.params = {str(key): value for key, value in params.items()}
        self.config: DictConfig | None = None
        self.hydra_context: HydraContext | None = None
        self.launcher: Launcher | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take what Hydra hands over, and its launcher."""
        self.config, self.hydra_context = config, hydra_context
        self.launcher = Plugins.instance().instantiate_launcher(hydra_context, task_function, config)

    def sweep(self, arguments: list[str]) -> None:
        """Run trials until there are enough of them; those of a search that was killed count.

        Raises:
            UserError: There is nothing to search, the folder holds another search, or no trial succeeds.
        """
        assert self.config is not None
        self._check()
        from distillkit.reporting.sweeps import write_sweep
        from distillkit.tuning.space import examples, own_values, space_of

        fixed, ranges = self._parse(arguments)
        space = space_of(ranges)
        for values in examples(space):
            self._compose([*fixed, *values])
        base = self._compose(fixed)
        metric = self._metric(base)
        search = self._open(base, space, metric)
        if self.recipe_first and not search.trials:
            search.start_with(own_values(space, {key: _chosen(base, key) for key in space}))
        sweep.Sweep.searching = True
        while len(search.trials) < self.trials or search.unfinished:
            self._try(search, search.next(), fixed, metric)
            write_sweep(search.folder, str(base.name), metric, list(search.rows()), search.scales(), search.recipe)
        best = search.best
        _say(f"\nbest: trial {best.number}, {metric} {best.value:.4f}: {_line(search, best)}")
        _say(f"report: {search.folder / 'report.html'}")

    def _check(self) -> None:
        if sweep.Sweep.command != "train":
            fix = "search with `distillkit train RECIPE`, then run the recipe with what it found"
            raise UserError("only trainings are searched", where="hydra/sweeper=optuna", fix=fix)
        if find_spec("optuna") is None:
            raise UserError("a search needs optuna", where="hydra/sweeper", fix="pip install 'distillkit[tune]'")
        if {"RANK", "LOCAL_RANK"} & set(os.environ):
            fix = "start it once, with launch.num_processes=N"
            raise UserError("a search starts the processes of its trainings itself", where="hydra/sweeper", fix=fix)
        from distillkit.tuning.study import SAMPLERS

        if self.sampler not in SAMPLERS:
            near = did_you_mean(self.sampler, list(SAMPLERS))
            raise UserError(f"unknown sampler '{self.sampler}'", where="hydra.sweeper.sampler", fix=near)
        for key in ("trials", "startup"):
            if getattr(self, key) < 1:
                raise UserError(f"must be at least 1, got {getattr(self, key)}", where=f"hydra.sweeper.{key}")

    def _parse(self, arguments: list[str]) -> tuple[list[str], list[Override]]:
        """Return the overrides that stay and those that are searched; the command line wins over `params`."""
        assert self.hydra_context is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        parsed = parser.parse_overrides([*(f"{key}={value}" for key, value in self.params.items()), *arguments])
        last = {override.get_key_element().lstrip("+~"): override for override in parsed}
        fixed = [str(override.input_line) for override in last.values() if not override.is_sweep_override()]
        ranges = [override for override in last.values() if override.is_sweep_override()]
        if not ranges:
            raise UserError("there is nothing to search", where="hydra/sweeper=optuna", fix=HELP)
        return fixed, ranges

    def _compose(self, overrides: list[str]) -> DictConfig:
        assert self.hydra_context is not None
        assert self.config is not None
        return self.hydra_context.config_loader.load_sweep_config(self.config, overrides)

    def _metric(self, base: DictConfig) -> str:
        from distillkit.commands.parts import build_required

        task = build_required(OmegaConf.to_container(base.task, resolve=True), "task")
        metric = self.metric or base.train.best_metric or task.quick().best_metric
        if metric not in task.metric_names:
            fix = did_you_mean(metric, list(task.metric_names))
            raise UserError(f"{task.name} has no metric '{metric}'", where="hydra.sweeper.metric", fix=fix)
        return str(metric)

    def _open(self, base: DictConfig, space: Any, metric: str) -> Search:
        from distillkit.tasks.base import higher_is_better
        from distillkit.tuning.study import Drawing, open_search

        assert self.config is not None
        folder = Path(self.config.hydra.sweep.dir)
        values = OmegaConf.to_container(base, resolve=False)
        assert isinstance(values, dict)
        kept = {key: values[key] for key in (*DECIDES["train"], "vars")}
        about = {key: str(value) for key, value in leaves(kept)} | {"metric": metric}
        about |= {key: repr(distribution) for key, distribution in space.items()}
        folder.mkdir(parents=True, exist_ok=True)
        drawing = Drawing(self.sampler, self.startup, self.seed)
        search = open_search(folder, space, drawing, higher_is_better(metric), about, base.overwrite)
        OmegaConf.save(self.config, folder / "multirun.yaml")
        return search

    def _try(self, search: Search, trial: FrozenTrial, fixed: list[str], metric: str) -> None:
        """Run a trial, or take over the value of an earlier one that was the same."""
        twin = search.twin(trial)
        if twin is not None:
            search.tell(trial, twin.value, same_as=twin.number)
            return
        _say(f"\n[{trial.number + 1}/{self.trials}] {_line(search, trial)}")
        assert self.launcher is not None
        values = [f"{key}={text}" for key, text in search.values(trial).items()]
        (done,) = self.launcher.launch([[*fixed, *values]], initial_job_idx=trial.number)
        if done.return_value is not None:
            self._failed(search, trial, told(done.return_value))
            return
        metrics = search.found(trial)["metrics"]
        if not metrics:
            raise UserError("nothing to judge by", where="dataset.validation", fix="a search needs a validation split")
        if metrics.get(metric) is None:
            self._failed(search, trial, UserError(f"the training measured no finite {metric}"))
        else:
            search.tell(trial, metrics[metric])

    def _failed(self, search: Search, trial: FrozenTrial, error: BaseException) -> None:
        """Keep a failure as what the trial came to, as long as others succeed."""
        if not isinstance(error, UserError):
            raise error
        search.tell(trial, None, problem=str(error))
        if not search.succeeded and len(search.trials) >= min(TRIED, self.trials):
            raise error
        _say(f"trial {trial.number} failed: {error}")


def _chosen(base: DictConfig, key: str) -> Any:
    """Return the recipe's own value of a key, or its option of a group."""
    name = key.lstrip("+")
    options = base.hydra.runtime.choices
    return options[name] if name in options else OmegaConf.select(base, name, throw_on_missing=False)


def _line(search: Search, trial: FrozenTrial) -> str:
    return "  ".join(f"{key}={text}" for key, text in search.values(trial).items())


def _say(text: str) -> None:
    from distillkit.reporting.console import notice

    notice(text)
