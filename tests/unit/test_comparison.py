"""The comparison as tables and sentences: shares, units, columns; and the report files."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from distillkit.reporting import numbers
from distillkit.reporting.comparison import cost_grid, heading, kept_share, notes, quality_grid
from distillkit.reporting.files import markdown_table, plain, read_report, write_report
from distillkit.reporting.markdown import comparison_markdown
from distillkit.reporting.verdict import verdict
from tests.reports import comparison, model, whole


def test_the_share_kept_is_one_for_equals_and_falls_with_quality():
    assert kept_share(0.45, 0.9, True) == 0.5
    assert kept_share(4.0, 2.0, False) == 0.5
    assert kept_share(3.0, 3.0, False) == 1.0
    assert math.isnan(kept_share(0.5, 0.0, True))


def test_columns_follow_what_was_measured():
    bare = comparison({"teacher": model(intervals={})})
    assert quality_grid(bare).titles == ["model", "accuracy", "loss"]
    assert quality_grid(bare).rows == [["teacher", "90.00 %", "0.2500"]]
    assert cost_grid(bare).titles == ["model", "parameters", "size"]
    assert cost_grid(bare).rows == [["teacher", "1.50 M", "6.0 MB"]]
    assert notes(bare) == []
    assert heading(bare) == "reviews, validation split, 872 examples"


def test_everything_that_was_measured_has_a_column():
    quality, cost = quality_grid(whole()), cost_grid(whole())
    assert quality.titles == [
        "model", "accuracy", "95 % interval", "kept", "Δ teacher", "p", "Δ alone", "p",
        "loss", "agreement", "KL", "ECE",
    ]  # fmt: skip
    assert quality.rows[0] == [
        "teacher", "90.00 %", "88.0–92.0 %", "100.0 %", "–", "–", "–", "–", "0.2500", "–", "–", "0.0200",
    ]  # fmt: skip
    assert quality.rows[2] == [
        "int8", "88.00 %", "88.0–92.0 %", "97.8 %", "−2.00 %", "0.002", "+8.00 %", "0.002",
        "0.3000", "95.0 %", "0.0200", "0.0300",
    ]  # fmt: skip
    assert [(column.title, under and under.title) for column, under in quality.stacks][:4] == [
        ("accuracy", "95 % interval"), ("kept", None), ("Δ teacher", "p"), ("Δ alone", "p"),
    ]  # fmt: skip
    assert cost.titles == [
        "model", "parameters", "non-zero", "size", "memory", "latency", "p95", "rows/s at 8", "rows/s at 32",
    ]  # fmt: skip
    assert cost.rows[2] == [
        "int8", "1.50 M", "46.7 %", "1.5 MB", "90.0 MB", "0.50 ms", "15.0 ms", "700", "1,234",
    ]  # fmt: skip
    assert quality_grid(whole(), compact=True).rows[0][2] == "± 2.00 %"
    assert {what for what, _ in notes(whole())} == {
        "kept", "agreement", "Δ, p, 95 %", "KL", "ECE", "memory", "latency, p95",
    }  # fmt: skip


def test_the_deciding_metric_comes_first_and_may_fall():
    models = {"teacher": model(kept=1.0), "student": model(metrics={"accuracy": 0.8, "loss": 0.5}, kept=0.5)}
    found = comparison(models, quality="loss", higher_is_better=False)
    assert quality_grid(found).titles[1:3] == ["loss", "95 % interval"]
    assert quality_grid(found).rows[1][1:3] == ["0.5000", "0.200–0.300"]
    assert "lower is better" in dict(notes(found))["kept"]


def test_rows_that_were_cut_or_left_out_are_told():
    counts = {"rows": 200, "encoded": 190, "bad": 3, "left_out": 7, "truncated": 20}
    told = dict(notes(comparison({"teacher": model()}, data=counts)))["data"]
    assert told == "3 bad rows skipped, 7 rows left out, 10.0 % of the rows longer than task.max_length and cut"


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (numbers.metric_value("macro_f1", 0.5), "50.00 %"),
        (numbers.metric_value("arc_easy:acc_norm", 0.5), "50.00 %"),
        (numbers.metric_value("perplexity", 46.554), "46.55"),
        (numbers.metric_value("word_perplexity", 3.4e8), "3.4e+08"),
        (numbers.metric_value("best_threshold", -0.5), "-0.5000"),
        (numbers.metric_value("matthews", None), "–"),
        (numbers.metric_interval("perplexity", [41.0, 48.123]), "41.00–48.12"),
        (numbers.metric_difference("loss", -0.0336), "−0.0336"),
        (numbers.metric_difference("accuracy", 0.004), "+0.40 %"),
        (numbers.p_value(0.0004), "< 0.001"),
        (numbers.p_value(0.0123), "0.012"),
        (numbers.p_value(0.8), "0.80"),
        (numbers.megabytes(1_234_567_890), "1,235 MB"),
        (numbers.milliseconds(0.123), "0.12 ms"),
        (numbers.milliseconds(1234.5), "1,234 ms"),
        (numbers.count(99_999), "99,999"),
        (numbers.duration(61.4), "1 min 1 s"),
    ],
)
def test_numbers(written, expected):
    assert written == expected


def test_the_verdict_says_what_the_last_model_keeps_saves_and_gains():
    kept, gained = verdict(whole())
    assert kept == (
        "int8 keeps 97.8 % of teacher’s quality, takes 1.5 MB instead of 6.0 MB (4.0× smaller) and answers one row "
        "in 0.50 ms instead of 12.3 ms (25× faster)."
    )
    assert gained == "It is better than alone, which had no teacher (accuracy +8.00 %, p = 0.002)."
    unsure = whole()
    unsure["models"]["int8"]["against"]["alone"]["p"] = 0.4
    assert "these examples cannot tell" in verdict(unsure)[1]
    lower = whole() | {"higher_is_better": False}
    assert "worse than alone" in verdict(lower)[1]
    assert verdict(comparison({"teacher": model()})) == []


def test_markdown_has_tables_meanings_examples_and_samples():
    text = comparison_markdown(whole())
    assert "| model | accuracy | 95 % interval |" in text
    assert "| int8 | 88.00 % |" in text
    assert "- KL: mean KL(teacher ‖ model), nats an item." in text
    assert "### Most different from teacher" in text
    assert "### Samples" in text
    assert "- int8: slow" in text
    outside = "".join(part for number, part in enumerate(text.split("`")) if number % 2 == 0)
    assert "<script>" not in outside.replace("- int8: slow <script>", "")


def test_a_markdown_table_escapes_bars():
    assert markdown_table(["a", "b"], [["x|y", "1"]]) == "| a | b |\n| --- | ---: |\n| x\\|y | 1 |"


def test_a_report_keeps_what_other_commands_wrote(tmp_path):
    write_report(tmp_path, "train", {"name": "a", "steps": 3}, "## Train")
    write_report(tmp_path, "eval", {"name": "a", "rows": 5}, "## Eval")
    write_report(tmp_path, "train", {"name": "a", "steps": 4}, "## Again")
    report = read_report(tmp_path)
    assert (report["train"]["steps"], report["eval"]["rows"]) == (4, 5)
    assert (tmp_path / "report.md").read_text() == "## Again\n\n## Eval\n"
    assert read_report(tmp_path / "none") == {}


def test_no_half_written_file_is_left(tmp_path):
    write_report(tmp_path, "train", {"name": "a"}, "text")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.json", "report.md"]


def test_json_has_plain_values_and_null_for_what_is_not_finite(tmp_path):
    values = {"a": np.float32(0.5), "b": np.arange(2), "c": (1, float("nan")), 3: np.int64(4), "p": tmp_path}
    assert plain(values) == {"a": 0.5, "b": [0, 1], "c": [1, None], "3": 4, "p": str(tmp_path)}
    assert json.loads(json.dumps(plain(values), allow_nan=False)) == plain(values)
