"""How far the rows decide: bootstrap intervals and paired tests, by resampling the rows of a split."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, nan

import numpy as np

from distillkit.errors import UserError
from distillkit.tasks.base import Answers

LEVEL = 0.95
FEWEST = 100  # resamples below which nothing is said

Judge = Callable[[Answers], dict[str, float]]


@dataclass(frozen=True)
class Difference:
    """How much better or worse a model is than another one on the same rows.

    Attributes:
        value: Metric of the model minus that of the other.
        low: Of the 95 % interval.
        high: Likewise.
        p: Two-sided p-value of the paired bootstrap: how often the resamples see no difference, or the opposite one.
    """

    value: float
    low: float
    high: float
    p: float


@dataclass(frozen=True)
class Resampled:
    """What every model's metrics were on the same resamples.

    Attributes:
        whole: Model → metric → value on all rows.
        values: Model → metric → float64 `[count]`; NaN where a resample has no value, such as a correlation of
            constants.
        count: Resamples drawn.
    """

    whole: Mapping[str, Mapping[str, float]]
    values: Mapping[str, Mapping[str, np.ndarray]]
    count: int

    def interval(self, model: str, metric: str) -> tuple[float, float] | None:
        """Return the 95 % percentile interval; None after too few resamples."""
        return _interval(self.values[model][metric])

    def difference(self, model: str, other: str, metric: str) -> Difference | None:
        """Compare two models on the same resamples; None after too few."""
        drawn = self.values[model][metric] - self.values[other][metric]
        interval = _interval(drawn)
        if interval is None:
            return None
        value = self.whole[model][metric] - self.whole[other][metric]
        return Difference(value, *interval, p=p_value(drawn))


def resample(
    answers: Mapping[str, Answers], judge: Judge, columns: Sequence[str], count: int, seconds: float, seed: int
) -> Resampled:
    """Draw as many rows as there are, with replacement, again and again, and judge all models on the same draws.

    Args:
        answers: Model → columns with an entry for each row, the same rows for all.
        judge: Answers → metrics; reads `columns`.
        columns: See `judge`.
        count: Resamples.
        seconds: No further resample is begun after so long. The ones before are the same, however many there are.
        seed: Of the draws; draw k depends on nothing else but k and the number of rows.
    """
    read = {name: {column: found[column] for column in columns if column in found} for name, found in answers.items()}
    rows = {len(values) for found in read.values() for values in found.values()}
    if len(rows) != 1:
        raise ValueError(f"the models were judged on different rows: {sorted(rows)}")
    (size,) = rows
    whole = {name: judge(found) for name, found in read.items()}
    drawn: dict[str, dict[str, list[float]]] = {name: {m: [] for m in metrics} for name, metrics in whole.items()}
    started, done = time.monotonic(), 0
    while done < count and time.monotonic() - started < seconds:
        chosen = np.random.default_rng((seed, done)).integers(size, size=size).tolist()
        for name, found in read.items():
            metrics = _judged(judge, {column: [values[row] for row in chosen] for column, values in found.items()})
            for metric, series in drawn[name].items():
                series.append(metrics.get(metric, nan))
        done += 1
    arrays = {name: {m: np.array(v) for m, v in metrics.items()} for name, metrics in drawn.items()}
    return Resampled(whole, arrays, done)


def p_value(differences: np.ndarray) -> float:
    """Return the two-sided p-value of "no difference" from resampled differences `[count]`.

    Twice the smaller of the shares of differences ≤ 0 and ≥ 0, the observed sample counted in (Davison and Hinkley
    1997, section 4.4), so that it is never zero and 1 for equal models.
    """
    finite = differences[np.isfinite(differences)]
    smaller = min(int((finite <= 0).sum()), int((finite >= 0).sum()))
    return min(1.0, 2 * (1 + smaller) / (1 + len(finite)))


def _interval(values: np.ndarray) -> tuple[float, float] | None:
    finite = values[np.isfinite(values)]
    if len(finite) < FEWEST:
        return None
    low, high = np.quantile(finite, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return (float(low), float(high)) if isfinite(low) and isfinite(high) else None


def _judged(judge: Judge, answers: Answers) -> dict[str, float]:
    """Judge a resample; one that cannot be judged, such as one without any label, has no values."""
    try:
        return judge(answers)
    except UserError:
        return {}
