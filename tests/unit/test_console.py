"""What the terminal shows: plain lines where there is none."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from distillkit.reporting import console


@pytest.fixture
def screen(monkeypatch, request) -> io.StringIO:
    output = io.StringIO()
    terminal = getattr(request, "param", False)
    made = Console(file=output, force_terminal=terminal, highlight=False, soft_wrap=True, width=90)
    monkeypatch.setattr(console, "console", made)
    return output


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(console, "time", made)
    return made


def test_progress_is_a_plain_line_every_few_seconds_and_at_the_end(screen, clock):
    with console.ProgressDisplay("train", 100) as display:
        for step in range(1, 101):
            clock.now += 1.0
            display.update(step, f"loss {step}" if step % 5 == 0 else None)
    lines = screen.getvalue().splitlines()
    assert [line.split()[1] for line in lines] == [f"{step}/100" for step in range(10, 101, 10)]
    assert lines[0] == "train  10/100  loss 10 · 0:01:40 left"
    assert lines[-1] == "train  100/100  loss 100 · 0:01:40"
    assert "\x1b" not in screen.getvalue()


def test_a_resumed_run_estimates_from_its_own_steps(screen, clock):
    with console.ProgressDisplay("train", 100) as display:
        for step in range(51, 71):
            clock.now += 2.0
            display.update(step, "loss 1")
    assert screen.getvalue().splitlines()[-1] == "train  70/100  loss 1 · 0:01:03 left"  # 40 s for 19 steps


@pytest.mark.parametrize("screen", [True], indirect=True)
def test_a_terminal_gets_a_bar(screen):
    with console.ProgressDisplay("train", 4) as display:
        display.update(2, "loss 0.5")
        display.bar.refresh()
    assert "2/4" in screen.getvalue()
    assert "loss 0.5" in screen.getvalue()


@pytest.mark.parametrize("screen", [True, False], indirect=True)
def test_quiet_processes_show_nothing(screen, clock):
    with console.ProgressDisplay("train", 1, quiet=True) as display:
        display.update(1, "loss")
    assert screen.getvalue() == ""


def test_notices_are_printed_as_they_are(screen):
    console.notice("a [bold]path[/x] " + "long " * 40)
    assert screen.getvalue() == "a [bold]path[/x] " + "long " * 40 + "\n"


def test_a_table_is_not_squeezed_where_the_output_is_no_terminal(screen):
    rows = [["teacher", "91.00 %"], ["a-student-with-a-long-name", "90 %"]]
    console.show_table("models", ["model", "accuracy"], rows)
    text = screen.getvalue()
    assert "a-student-with-a-long-name" in text
    assert "91.00 %" in text


@pytest.mark.parametrize(("models", "tables"), [(2, 1), (6, 1), (9, 2)])
def test_a_table_that_is_too_wide_is_turned_and_then_cut(screen, models, tables):
    columns = ["model", *(f"a metric with a name {number}" for number in range(8))]
    rows = [[f"model-{row}", *["12.34 %"] * 8] for row in range(models)]
    console.show_table("models", columns, rows)
    lines = screen.getvalue().splitlines()
    assert max(map(len, lines)) <= 90
    assert sum(line.strip().startswith("model ") for line in lines) == tables
    for row in range(models):
        assert f"model-{row}" in screen.getvalue()
    assert screen.getvalue().count("12.34 %") == 8 * models


def test_remarks_are_wrapped_between_words(screen):
    console.remark("several words [here] " * 20)
    lines = screen.getvalue().splitlines()
    assert len(lines) > 3
    assert all(line.startswith("  ") and len(line) <= 90 and line == line.rstrip() for line in lines)
    assert " ".join(screen.getvalue().split()) == ("several words [here] " * 20).strip()
