"""The table of a sweep: what each job or trial was given, and what it came to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from distillkit.reporting import numbers
from distillkit.reporting.files import markdown_table, read_report, write_report
from distillkit.reporting.pictures.parallel import Column, Trace, parallel
from distillkit.tasks.base import higher_is_better

CAUTION = "The best was chosen on this split and looks better there than it is: compare it on another, such as test."


def write_sweep(
    folder: Path,
    name: str,
    metric: str,
    trials: Sequence[Mapping[str, Any]],
    scales: Mapping[str, str],
    recipe: int | None = None,
) -> None:
    """Write the report of a sweep's folder.

    Args:
        folder: Of the sweep; each trial's is its number.
        name: Of the run.
        metric: What decides.
        trials: number, state ("complete", "failed", "running"), values by key, value of the metric, all metrics,
            seconds, and problem or same_as (a number) where there is one.
        scales: Key → "log", "linear" or "choice".
        recipe: The trial with the recipe's own values.
    """
    done = [trial for trial in trials if trial["value"] is not None]
    sign = -1 if higher_is_better(metric) else 1
    best = min(done, key=lambda trial: (sign * trial["value"], trial["number"]))["number"] if done else None
    result = {
        "name": name,
        "metric": metric,
        "higher_is_better": higher_is_better(metric),
        "scales": dict(scales),
        "best": best,
        "recipe": recipe,
        "trials": [dict(trial) for trial in trials],
    }
    write_report(folder, "sweep", result, _markdown(result))


def write_grid(folder: Path, name: str, jobs: Mapping[int, Mapping[str, str]]) -> None:
    """Write the report of a grid of trainings, of those that finished.

    Args:
        folder: Of the sweep.
        name: Of the run.
        jobs: Number → values of all its keys, as they stand on the command line.
    """
    found = {number: read_report(folder / str(number)).get("train", {}) for number in jobs}
    metric = next((report["best_metric"] for report in found.values() if report.get("metrics")), None)
    if metric is None:
        return
    keys = [key for key in next(iter(jobs.values())) if len({values.get(key) for values in jobs.values()}) > 1]
    trials = [
        {
            "number": number,
            "state": "complete" if found[number] else "failed",
            "values": {key: values.get(key, "") for key in keys},
            "value": found[number].get("metrics", {}).get(metric),
            "metrics": found[number].get("metrics", {}),
            "seconds": found[number].get("seconds"),
        }
        for number, values in jobs.items()
    ]
    write_sweep(folder, name, metric, trials, {key: _guessed(key, jobs) for key in keys})


def sweep_table(result: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return titles and rows, the best first; those that came to nothing last."""
    keys, metric = list(result["scales"]), result["metric"]
    names = [metric, *(n for n in _metrics(result) if n != metric)]
    titles = ["trial", *keys, *(numbers.title(name) for name in names), "time", ""]
    rows = [
        [
            str(trial["number"]),
            *(trial["values"].get(key, "") for key in keys),
            *(numbers.metric_value(name, trial["metrics"].get(name)) for name in names),
            numbers.NOTHING if trial["seconds"] is None else numbers.duration(trial["seconds"]),
            _remark(result, trial),
        ]
        for trial in ranked(result)
    ]
    return titles, rows


def ranked(result: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the trials, the best first."""
    sign = -1 if result["higher_is_better"] else 1
    return sorted(
        result["trials"],
        key=lambda trial: (trial["value"] is None, sign * (trial["value"] or 0.0), trial["number"]),
    )


def sweep_picture(result: Mapping[str, Any]) -> Markup | None:
    """Draw the trials that came to a value as parallel coordinates; the best stands out, the recipe's own is dashed."""
    metric = result["metric"]
    done = [trial for trial in ranked(result) if trial["value"] is not None]
    if len(done) < 2:
        return None
    columns = [
        Column(key, [_number(trial["values"][key], kind) for trial in done], kind)
        for key, kind in result["scales"].items()
    ]
    values = [trial["value"] for trial in done]
    down, share = not result["higher_is_better"], numbers.is_share(metric)
    columns.append(Column(numbers.title(metric), values, down=down, percent=share))
    last = len(done) - 1
    traces = [
        Trace(
            goodness=1 - place / last,
            series=1 if trial["number"] == result["best"] else 2,
            hint=f"trial {trial['number']}: {numbers.metric_value(metric, trial['value'])}  {line(trial)}",
            style="dash1" if trial["number"] == result["recipe"] else "",
        )
        for place, trial in enumerate(done)
    ]
    return parallel(columns, traces)


def line(trial: Mapping[str, Any]) -> str:
    """Write a trial's values as overrides of the command line."""
    return " ".join(f"{key}={value}" for key, value in trial["values"].items())


def sweep_outcome(result: Mapping[str, Any]) -> str:
    """Say what a sweep came to."""
    done = sum(trial["value"] is not None for trial in result["trials"])
    best = next((trial for trial in result["trials"] if trial["number"] == result["best"]), None)
    if best is None:
        return "no trial came to a value"
    metric = result["metric"]
    said = f"The best of {done} trials is {best['number']}: {numbers.title(metric)} "
    said += f"{numbers.metric_value(metric, best['value'])} with {line(best)}"
    own = next((trial for trial in result["trials"] if trial["number"] == result["recipe"]), None)
    if own is not None and own["value"] is not None:
        said += f"; the recipe's own values come to {numbers.metric_value(metric, own['value'])}"
    return said


def _markdown(result: Mapping[str, Any]) -> str:
    titles, rows = sweep_table(result)
    return "\n\n".join(
        [f"## Sweep: {result['name']}", f"{sweep_outcome(result)}.", markdown_table(titles, rows), CAUTION]
    )


def _remark(result: Mapping[str, Any], trial: Mapping[str, Any]) -> str:
    said = ["best"] if trial["number"] == result["best"] else []
    said += ["the recipe's own"] if trial["number"] == result["recipe"] else []
    said += [f"as trial {trial['same_as']}"] if trial.get("same_as") is not None else []
    said += [trial["problem"]] if trial.get("problem") else []
    return "; ".join(said) or ("" if trial["state"] == "complete" else trial["state"])


def _metrics(result: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(name for trial in result["trials"] for name in trial["metrics"]))


def _number(value: str, kind: str) -> float | str:
    return value if kind == "choice" else float(value)


def _guessed(key: str, jobs: Mapping[int, Mapping[str, str]]) -> str:
    """Tell how a grid's values are best shown: by a factor of ten or more, logarithmically."""
    try:
        found = [float(values.get(key, "")) for values in jobs.values()]
    except ValueError:
        return "choice"
    return "log" if min(found) > 0 and max(found) >= 10 * min(found) else "linear"
