"""metrics.jsonl: one line an event, and none twice after a resume."""

from __future__ import annotations

import json

from distillkit.training.records import Records, flat
from tests.tiny import accelerator


def test_events_are_lines(tmp_path):
    records = Records(tmp_path / "out" / "metrics.jsonl", accelerator())
    records.write("train", 10, {"loss": 0.5, "terms": {"kd": 0.25}, "grad_norm": None})
    records.write("evaluate", 10, {"accuracy": 1.0})
    lines = [json.loads(line) for line in records.path.read_text().splitlines()]
    assert [(line["event"], line["step"]) for line in lines] == [("train", 10), ("evaluate", 10)]
    assert lines[0]["terms"] == {"kd": 0.25}
    assert all(line["seconds"] >= 0 for line in lines)


def test_a_resumed_run_forgets_what_it_will_write_again(tmp_path):
    records = Records(tmp_path / "metrics.jsonl", accelerator())
    for step in (1, 2, 3):
        records.write("train", step, {"loss": float(step)})
    with records.path.open("a") as file:
        file.write('{"event": "train", "st')  # a crash in the middle of a line
    records.rewind(2)
    records.write("train", 3, {"loss": 30.0})
    lines = [json.loads(line) for line in records.path.read_text().splitlines()]
    assert [line["loss"] for line in lines] == [1.0, 2.0, 30.0]
    records.rewind(0)
    assert records.path.read_text() == ""


def test_nothing_to_forget(tmp_path):
    Records(tmp_path / "metrics.jsonl", accelerator()).rewind(0)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_trackers_get_flat_numbers(tmp_path, monkeypatch):
    ours, logged = accelerator(), []
    monkeypatch.setattr(ours, "log", lambda values, step: logged.append((step, values)))
    Records(tmp_path / "m.jsonl", ours).write("train", 4, {"loss": 1, "terms": {"kd": 2}, "grad_norm": None})
    assert logged == [(4, {"train/loss": 1, "train/terms/kd": 2})]
    assert flat({"a": {"b": {"c": 1}}, "d": None}) == {"a/b/c": 1}


def test_only_the_main_process_writes(tmp_path, monkeypatch):
    class Second:
        is_main_process = False

    records = Records(tmp_path / "metrics.jsonl", Second())
    records.write("train", 1, {"loss": 1.0})
    records.rewind(0)
    assert not records.path.exists()
    assert records.progress("train", 3).quiet
