"""A terminal: the command line in this process."""

from __future__ import annotations

import io
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass

from distillkit import cli


@dataclass
class Outcome:
    code: int
    out: str
    err: str


def distillkit(*argv: str) -> Outcome:
    """Run a command line; what processes of its own print is not caught."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = cli.main(list(argv))
    return Outcome(code, out.getvalue(), err.getvalue())
