"""The terminal: notices, progress and tables; plain lines when the output is no terminal."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from math import ceil
from textwrap import fill
from types import TracebackType

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

first = os.environ.get("RANK", "0") == "0"  # of several processes only the first one speaks
console = Console(highlight=False, soft_wrap=True, quiet=not first)
PLAIN_SECONDS = 10.0  # between two progress lines when the output is no terminal


def notice(text: str) -> None:
    """Print one line about what is going on."""
    console.print(text, markup=False)


def remark(text: str) -> None:
    """Print what explains a table, wrapped between words."""
    console.print(fill(text, console.width - 2, initial_indent="  ", subsequent_indent="  "), markup=False)


def heading(text: str) -> None:
    """Print the title of a part of the work."""
    console.print(f"\n[bold]{text}[/bold]")


def show_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; the first column is text, the others are numbers.

    One that is too wide is turned on its side, and one that is still too wide is cut into several.
    """
    shown = [_table(title, columns, rows)]
    if not _fits(shown[0]):
        shown = _turned(title, columns, rows)
    for number, table in enumerate(shown):
        if title and number == 0:
            console.print()
        console.print(table)


def _turned(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[Table]:
    """Make a column of each row, in as few tables side by side as the terminal has room for."""
    for parts in range(1, len(rows) + 1):
        size = ceil(len(rows) / parts)
        groups = [rows[start : start + size] for start in range(0, len(rows), size)]
        tables = []
        for number, group in enumerate(groups):
            names, *cells = list(zip(columns, *group, strict=True))
            tables.append(_table(title if number == 0 else "", names, cells))
        if all(map(_fits, tables)):
            break
    return tables


def _fits(table: Table) -> bool:
    return Measurement.get(console, console.options.update(max_width=1000), table).maximum <= console.width


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(title=title or None, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


class ProgressDisplay:
    """Show how far a run is: a bar in a terminal, a line every few seconds elsewhere.

    Args:
        title: What is running.
        steps: How many steps there are.
        quiet: Show nothing.
    """

    def __init__(self, title: str, steps: int, quiet: bool = False) -> None:
        self.title = title
        self.steps = steps
        self.quiet = quiet
        self.live = console.is_terminal and not quiet
        self.first_step: int | None = None
        self.started = self.printed = time.monotonic()
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=16),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=console,
            disable=not self.live,
        )

    def __enter__(self) -> ProgressDisplay:
        self.bar.start()
        self.task = self.bar.add_task(self.title, total=self.steps, status="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def update(self, step: int, status: str | None = None) -> None:
        """Show that `step` steps are done, and a status text if there is a new one."""
        if self.quiet:
            return
        if self.first_step is None:
            self.first_step = step
        if self.live:
            self.bar.update(self.task, completed=step)
            if status is not None:
                self.bar.update(self.task, status=status)
            return
        now = time.monotonic()
        if status is not None and (now - self.printed >= PLAIN_SECONDS or step == self.steps):
            self.printed = now
            done = step - self.first_step
            left = (now - self.started) / done * (self.steps - step) if done else 0.0
            ending = f" · {_clock(left)} left" if step < self.steps else f" · {_clock(now - self.started)}"
            notice(f"{self.title}  {step}/{self.steps}  {status}{ending}")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
