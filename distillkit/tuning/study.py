"""The study: the trials of a search, in a file of the sweep's folder, so that one that was killed goes on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from distillkit.errors import UserError
from distillkit.reporting.files import read_report
from distillkit.tuning.space import Space, scale, written

FILE = "study.db"
NAME = "distillkit"
ABOUT, RECIPE = "about", "recipe"  # what is noted of the study
SAME, PROBLEM = "same_as", "problem"  # and of a trial
STATES = {TrialState.RUNNING: "running", TrialState.COMPLETE: "complete", TrialState.FAIL: "failed"}
SAMPLERS = ("tpe", "random")


@dataclass(frozen=True)
class Drawing:
    """How values are drawn.

    Args:
        sampler: "tpe" (Bergstra et al. 2011) learns from what the trials came to, "random" from nothing.
        startup: Trials that are drawn at random before tpe learns from them.
        seed: Of the draws.
    """

    sampler: str
    startup: int
    seed: int

    def of(self, number: int) -> BaseSampler:
        """Return what draws one trial: its numbers follow from seed and number alone, also in a search that goes on."""
        seed = self.seed * 100_003 + number
        if self.sampler == "random":
            return RandomSampler(seed=seed)
        return TPESampler(n_startup_trials=self.startup, seed=seed)


@dataclass(frozen=True)
class Search:
    """What is searched, where it is kept, and what it has come to."""

    folder: Path
    space: Space
    drawing: Drawing
    study: optuna.Study

    @property
    def trials(self) -> list[FrozenTrial]:
        """All trials that were begun, in their order."""
        return [trial for trial in self.study.get_trials(deepcopy=False) if trial.state != TrialState.WAITING]

    @property
    def succeeded(self) -> list[FrozenTrial]:
        """The trials that came to a value."""
        return [trial for trial in self.trials if trial.state == TrialState.COMPLETE]

    @property
    def best(self) -> FrozenTrial:
        """The best trial, the first of equals."""
        sign = -1 if self.study.direction == optuna.study.StudyDirection.MAXIMIZE else 1
        return min(self.succeeded, key=lambda trial: (sign * (trial.value or 0.0), trial.number))

    @property
    def recipe(self) -> int | None:
        """The trial that has the recipe's own values."""
        return 0 if self.study.user_attrs.get(RECIPE) else None

    @property
    def unfinished(self) -> bool:
        """Whether a trial was begun that has not come to an end."""
        return any(trial.state == TrialState.RUNNING for trial in self.trials)

    def start_with(self, values: dict[str, Any]) -> None:
        """Let the first trial have these values; what they leave out is drawn."""
        self.study.set_user_attr(RECIPE, set(values) == set(self.space))
        self.study.enqueue_trial(values)

    def next(self) -> FrozenTrial:
        """Return the trial that was begun and not finished, else a new one."""
        for trial in self.trials:
            if trial.state == TrialState.RUNNING and set(trial.params) == set(self.space):
                return trial
            if trial.state == TrialState.RUNNING:
                self.tell(trial, None, problem="killed while its values were drawn")
        self.study.sampler = self.drawing.of(len(self.trials))
        number = self.study.ask(self.space).number
        return self.study.trials[number]

    def twin(self, trial: FrozenTrial) -> FrozenTrial | None:
        """Return an earlier trial of the very same values: training it again would come to the same."""
        same = (other for other in self.succeeded if self.values(other) == self.values(trial))
        return next((other for other in same if other.number < trial.number), None)

    def tell(
        self, trial: FrozenTrial, value: float | None, same_as: int | None = None, problem: str | None = None
    ) -> None:
        """Keep what a trial came to.

        Args:
            trial: That was begun.
            value: Of the metric; None if it failed.
            same_as: The number of the trial whose value it is.
            problem: Why it failed.
        """
        for key, note in ((SAME, same_as), (PROBLEM, problem)):
            if note is not None:
                self.study.set_user_attr(key, {**self.study.user_attrs.get(key, {}), str(trial.number): note})
        self.study.tell(trial.number, value, TrialState.FAIL if value is None else TrialState.COMPLETE)

    def found(self, trial: FrozenTrial) -> dict[str, Any]:
        """Return the report of a trial's training."""
        return read_report(self.folder / str(trial.number))["train"]

    def values(self, trial: FrozenTrial) -> dict[str, str]:
        """Return a trial's values as they stand on the command line."""
        return {key: written(trial.params[key]) for key in self.space if key in trial.params}

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield what a report keeps of each trial."""
        notes = self.study.user_attrs
        for trial in self.trials:
            same = notes.get(SAME, {}).get(str(trial.number))
            found = read_report(self.folder / str(trial.number if same is None else same)).get("train", {})
            yield {
                "number": trial.number,
                "state": STATES[trial.state],
                "same_as": same,
                "problem": notes.get(PROBLEM, {}).get(str(trial.number)),
                "values": self.values(trial),
                "value": trial.value,
                "metrics": found.get("metrics", {}) if trial.state == TrialState.COMPLETE else {},
                "seconds": found.get("seconds") if same is None else 0.0,
            }

    def scales(self) -> dict[str, str]:
        """Return how each key is best shown."""
        return {key: scale(distribution) for key, distribution in self.space.items()}


def open_search(
    folder: Path, space: Space, drawing: Drawing, higher: bool, about: dict[str, str], overwrite: bool
) -> Search:
    """Open the search of a folder, or begin one.

    Args:
        folder: Of the sweep; it is there.
        space: What is searched.
        drawing: How.
        higher: Whether more is better.
        about: What a search must have in common with what the folder holds, by key.
        overwrite: Throw another search away. One of which no trial has succeeded is thrown away in any case.

    Raises:
        UserError: The folder holds another search.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = _study(folder, higher)
    before = json.loads(study.user_attrs.get(ABOUT, "{}"))
    other = before and before != about
    if other and (overwrite or not Search(folder, space, drawing, study).succeeded):
        for trial in study.trials:
            shutil.rmtree(folder / str(trial.number), ignore_errors=True)
        optuna.delete_study(study_name=NAME, storage=_storage(folder))
        study, before, other = _study(folder, higher), {}, False
    if not before:
        study.set_user_attr(ABOUT, json.dumps(about))
    elif other:
        changed = [
            f"{key}: {before.get(key, '(absent)')} -> {about.get(key, '(absent)')}"
            for key in {**before, **about}
            if before.get(key) != about.get(key)
        ]
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise UserError(
            f"{folder} holds another search ({', '.join(changed[:3])}{more})",
            where="output_dir",
            fix="choose another output_dir, or set overwrite=true to throw that search away",
        )
    return Search(folder, space, drawing, study)


def _study(folder: Path, higher: bool) -> optuna.Study:
    direction = "maximize" if higher else "minimize"
    return optuna.create_study(storage=_storage(folder), study_name=NAME, direction=direction, load_if_exists=True)


def _storage(folder: Path) -> str:
    return f"sqlite:///{folder / FILE}"
