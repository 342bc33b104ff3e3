"""The training runs of a report: loss by term of each, and quality on validation of all together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from distillkit.reporting import numbers
from distillkit.reporting.history import History, read_history
from distillkit.reporting.parts import Colours, Part
from distillkit.reporting.pictures.curves import Curve, curves
from distillkit.tasks.base import higher_is_better

LIKELIHOOD = frozenset({"loss", "perplexity", "bits_per_byte"})  # which tell the same


@dataclass(frozen=True)
class Training:
    """One training run: of a stage, or of a step that retrains."""

    part: Part
    history: History

    @property
    def title(self) -> str:
        """What it is called."""
        name = self.history.name
        return name if self.part.command == "train" else f"{self.part.name}: {name}"

    @property
    def path(self) -> str:
        """Where the model that it made lies, below the folder of the whole run."""
        return f"{self.part.name}/{'model' if self.part.command == 'train' else f'compressed/{self.history.name}'}"

    @property
    def terms(self) -> str:
        """What the terms of the loss are."""
        return "; ".join(f"{name}: {text}" for name, text in self.part.result.get("loss", {}).items())


def trainings(parts: Sequence[Part]) -> list[Training]:
    """Read the training runs of all parts that wrote a metrics.jsonl."""
    return [Training(part, history) for part in parts for history in _histories(part)]


def loss_picture(training: Training, colours: Colours) -> Markup | None:
    """Draw the terms of the loss, and their weighted sum where there are several."""
    found = training.history.terms
    terms = {name: curve for name, curve in found.items() if name != "loss" or len(found) != 2}
    series = colours.of(training.path)
    lines = [
        Curve(name, *curve, series, "" if name == "loss" else f"dash{number % 4}")
        for number, (name, curve) in enumerate(terms.items())
    ]
    return curves(lines, "loss", height=220)


def overlay(runs: Sequence[Training], colours: Colours) -> list[Markup]:
    """Draw quality on validation: the metric that decides, and another one that tells more."""
    names = list(dict.fromkeys(name for run in runs for name in run.history.metrics))
    decisive = next((run.part.result["best_metric"] for run in runs if run.part.result.get("best_metric")), None)
    first = decisive if decisive in names else next(iter(names), None)
    others = [name for name in names if name != first and not {name, first} <= LIKELIHOOD]
    drawn = []
    for metric in [name for name in (first, *others[:1]) if name is not None]:
        lines = [
            Curve(run.history.name, *run.history.metrics[metric], colours.of(run.path), "points")
            for run in runs
            if metric in run.history.metrics
        ]
        title = f"{numbers.title(metric)} on validation, better is up"
        drawn.append(curves(lines, title, numbers.is_share(metric), down=not higher_is_better(metric)))
    return [picture for picture in drawn if picture is not None]


def _histories(part: Part) -> Iterator[History]:
    """Yield the training runs of a command: its own, or those of the steps that retrain."""
    paths = {part.name: part.folder / "metrics.jsonl"} if part.command == "train" else {}
    if part.command == "compress":
        written = sorted((part.folder / "compressed").glob("*.metrics.jsonl"))
        paths = {path.name.removesuffix(".metrics.jsonl"): path for path in written}
    for name, path in paths.items():
        history = read_history(name, path)
        if history is not None:
            yield history
