"""The comparison table: shares, units and columns."""

from __future__ import annotations

import math

import pytest

from distillkit.reporting.comparison import Compared, comparison_table, kept_share
from distillkit.reporting.files import markdown_table, read_report, write_report


def compared(**changes) -> Compared:
    values = {
        "path": "folder",
        "metrics": {"accuracy": 0.9, "loss": 0.25},
        "kept": 1.0,
        "agreement": None,
        "parameters": 1_500_000,
        "nonzeros": 1_500_000,
        "bytes": 6_000_000,
    }
    return Compared(**values | changes)


def test_the_share_kept_is_one_for_equals_and_falls_with_quality():
    assert kept_share("accuracy", 0.45, 0.9) == 0.5
    assert kept_share("loss", 4.0, 2.0) == 0.5
    assert kept_share("perplexity", 3.0, 3.0) == 1.0
    assert math.isnan(kept_share("accuracy", 0.5, 0.0))


def test_columns_follow_what_was_measured():
    columns, rows = comparison_table({"teacher": compared()}, "accuracy")
    assert columns == ["model", "accuracy", "loss", "kept", "agreement", "parameters", "size"]
    assert rows == [["teacher", "90.00 %", "0.2500", "100.0 %", "–", "1.50 M", "6.0 MB"]]


def test_speed_and_sparsity_have_columns_where_there_are_any():
    models = {
        "teacher": compared(latency_ms=12.34, rows_per_second=1234.5),
        "pruned": compared(
            metrics={"accuracy": 0.8, "loss": 0.5},
            kept=0.889,
            agreement=0.75,
            parameters=2_000,
            nonzeros=500,
            bytes=None,
            latency_ms=1.0,
            rows_per_second=9.0,
        ),
    }
    columns, rows = comparison_table(models, "loss")
    assert columns[1:] == [
        "loss", "accuracy", "kept", "agreement", "parameters", "non-zero", "size", "latency", "rows/s",
    ]  # fmt: skip
    assert rows[1] == ["pruned", "0.5000", "80.00 %", "88.9 %", "75.0 %", "2,000", "25.0 %", "–", "1.0 ms", "9"]
    assert rows[0][-2:] == ["12.3 ms", "1,234"]
    assert all(len(row) == len(columns) for row in rows)


def test_json_has_plain_values():
    assert compared().to_dict()["metrics"] == {"accuracy": 0.9, "loss": 0.25}


def test_a_markdown_table_escapes_bars():
    assert markdown_table(["a", "b"], [["x|y", "1"]]) == "| a | b |\n| --- | ---: |\n| x\\|y | 1 |"


def test_a_report_keeps_what_other_commands_wrote(tmp_path):
    write_report(tmp_path, "train", {"steps": 3}, "## Train")
    write_report(tmp_path, "eval", {"rows": 5}, "## Eval")
    write_report(tmp_path, "train", {"steps": 4}, "## Again")
    report = read_report(tmp_path)
    assert (report["train"]["steps"], report["eval"]["rows"]) == (4, 5)
    assert (tmp_path / "report.md").read_text() == "## Again\n\n## Eval\n"
    assert read_report(tmp_path / "none") == {}


@pytest.mark.parametrize("name", ["report.json", "report.md"])
def test_no_half_written_file_is_left(tmp_path, name):
    write_report(tmp_path, "train", {}, "text")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.json", "report.md"]
