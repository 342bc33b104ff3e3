"""The report of a sweep: ranked table, outcome, and parallel coordinates."""

from __future__ import annotations

import re
from typing import Any

import pytest

from distillkit.reporting.files import read_report
from distillkit.reporting.pictures.parallel import BOTTOM, HEIGHT, TOP, Column, Trace, parallel
from distillkit.reporting.sweeps import sweep_table, write_grid, write_sweep


def trial(number: int, value: float | None, metric: str = "accuracy", **more: Any) -> dict[str, Any]:
    return {
        "number": number,
        "state": "failed" if value is None else "complete",
        "values": {"loss.temperature": str(2**number), "loss": "kd" if number % 2 else "jsd"},
        "value": value,
        "metrics": {} if value is None else {metric: value, "loss": 0.5},
        "seconds": None if value is None else 61.0,
        **more,
    }


SCALES = {"loss.temperature": "log", "loss": "choice"}


def points(picture: str) -> list[list[tuple[float, float]]]:
    """The lines of a picture, each with its places on the axes."""
    paths = re.findall(r'<path d="(M[^"]+)" class="curve', picture)
    return [[tuple(map(float, pair.split(","))) for pair in re.findall(r"[ML]([\d.,]+)", path)] for path in paths]


def test_rows_are_ranked_and_say_what_they_are(tmp_path) -> None:
    trials = [trial(0, 0.8), trial(1, None, problem="not finite"), trial(2, 0.9), trial(3, 0.9, same_as=2, seconds=0.0)]
    write_sweep(tmp_path, "mine", "accuracy", trials, SCALES, recipe=0)
    result = read_report(tmp_path)["sweep"]
    assert (result["best"], result["higher_is_better"]) == (2, True)
    titles, rows = sweep_table(result)
    assert titles == ["trial", "loss.temperature", "loss", "accuracy", "loss", "time", ""]
    assert [(row[0], row[3], row[-1]) for row in rows] == [
        ("2", "90.00 %", "best"),
        ("3", "90.00 %", "as trial 2"),
        ("0", "80.00 %", "the recipe's own"),
        ("1", "–", "not finite"),
    ]
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "The best of 3 trials is 2: accuracy 90.00 % with loss.temperature=4 loss=jsd" in text
    assert "the recipe's own values come to 80.00 %" in text


def test_lower_is_better_where_it_is(tmp_path) -> None:
    trials = [trial(0, 3.0, "perplexity"), trial(1, 2.5, "perplexity"), trial(2, 4.0, "perplexity")]
    write_sweep(tmp_path, "mine", "perplexity", trials, SCALES)
    result = read_report(tmp_path)["sweep"]
    assert result["best"] == 1
    assert [row[0] for row in sweep_table(result)[1]] == ["1", "0", "2"]
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    best_last = points(page)[-1]
    assert min(y for *_, (_, y) in points(page)) == best_last[-1][1]  # drawn over the others, and highest


def test_nothing_came_to_a_value(tmp_path) -> None:
    write_sweep(tmp_path, "mine", "accuracy", [trial(0, None), trial(1, None)], SCALES)
    assert "no trial came to a value" in (tmp_path / "report.md").read_text(encoding="utf-8")
    assert points((tmp_path / "report.html").read_text(encoding="utf-8")) == []


def test_lines_go_through_their_values() -> None:
    columns = [
        Column("rate", [1e-5, 1e-4, 1e-3], "log"),
        Column("kind", ["a", "b", "a"], "choice"),
        Column("loss", [3.0, 1.0, 2.0], down=True),
    ]
    drawn = points(parallel(columns, [Trace(goodness, 2, "") for goodness in (0.0, 1.0, 0.5)]))
    assert len(drawn) == 3
    worst, middle, best = drawn  # better ones are drawn later
    heights = {name: [y for _, y in line] for name, line in (("worst", worst), ("middle", middle), ("best", best))}
    assert heights["best"][0] == pytest.approx((heights["worst"][0] + heights["middle"][0]) / 2)  # of the logarithm
    assert heights["worst"][0] > heights["best"][0] > heights["middle"][0]
    assert heights["worst"][1] == heights["middle"][1] != heights["best"][1]
    assert heights["best"][2] < heights["middle"][2] < heights["worst"][2]
    assert all(TOP <= y <= HEIGHT - BOTTOM for line in drawn for _, y in line)
    assert parallel([Column("x", [1.0]), Column("y", [1.0])], [Trace(1.0, 1, "")]) is None


def test_a_grid_shows_the_keys_that_differ(tmp_path) -> None:
    jobs = {n: {"train.seed": "1", "loss.alpha": f"{n / 4}", "loss": "kd"} for n in range(3)}
    write_grid(tmp_path, "grid", jobs)  # no job wrote a report
    assert not (tmp_path / "report.json").exists()
    for number in (0, 2):
        (tmp_path / str(number)).mkdir()
        report = f'{{"train": {{"best_metric": "accuracy", "metrics": {{"accuracy": 0.{number + 1}}}, "seconds": 1}}}}'
        (tmp_path / str(number) / "report.json").write_text(report, encoding="utf-8")
    write_grid(tmp_path, "grid", jobs)
    result = read_report(tmp_path)["sweep"]
    assert list(result["scales"]) == ["loss.alpha"]
    assert [one["state"] for one in result["trials"]] == ["complete", "failed", "complete"]
    assert result["best"] == 2
