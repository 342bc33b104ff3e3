"""Run distillkit's command line, and time its training loop like that of the peers: ARGUMENTS FILE, JOB OUTPUT SEED."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from string import Template
from typing import Any

from clock import clock


def main(arguments: str, job: str, output: str, seed: str) -> int:
    """Wrap `fit` as soon as it is imported, by importing the command first."""
    import distillkit.commands.train as command
    from distillkit.cli import main as distillkit

    fit = command.fit

    def timed(run: Any) -> Any:
        with clock(output):
            return fit(run)

    command.fit = timed
    text = Template(Path(arguments).read_text(encoding="utf-8")).substitute(JOB=job, OUTPUT=output, SEED=seed)
    return distillkit(shlex.split(text, comments=True))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
