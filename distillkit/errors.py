"""The one error that users see: what is wrong, where, and what to do; and how errors are printed."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

LONGEST = 500  # characters of what is wrong; a value may be of any length
_REFUSALS = [os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)]
TRACEBACK = "DISTILLKIT_TRACEBACK"  # in the environment, so that worker processes see it


class UserError(Exception):
    """Report bad input in one line.

    The command line prints it on stderr without a traceback and exits with code 2.

    Args:
        what: What is wrong, with the offending value.
        where: The key, file or line, if there is one.
        fix: What the user can do about it.
    """

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        what = what if len(what) <= LONGEST else f"{what[:LONGEST]}…"
        line = what if where is None else f"{where}: {what}"
        if fix is not None:
            line = f"{line}; {fix}"
        super().__init__(" ".join(line.split()))


class CheckFailed(RuntimeError):
    """Report in one line that what was made is not what was asked for; the command line exits with code 3."""


@contextmanager
def located(key: str, joint: str = ": ") -> Iterator[None]:
    """Put a key before what is refused inside; `joint` "." makes one key of both."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{key}{joint}{error}") from error


def did_you_mean(wrong: str, known: list[str]) -> str | None:
    """Phrase the nearest of `known` as a suggestion, or list them when none is near."""
    from difflib import get_close_matches

    near = get_close_matches(wrong, known, n=1, cutoff=0.5)
    if near:
        return f"did you mean '{near[0]}'?"
    return f"choose one of: {', '.join(sorted(known))}" if known else None


def told(error: BaseException) -> BaseException:
    """Return a disk's refusal, whichever library met it, as what users can act on; any other error as it is."""
    if isinstance(error, UserError) or not any(reason in str(error) for reason in _REFUSALS):
        return error
    return UserError(str(error), fix="make room or choose another output_dir; the same command goes on from there")


def report(error: BaseException) -> int:
    """Print an error as users shall see it and return the exit code.

    Every process but the first of several stays silent about bad input, which the first reports.
    """
    error = told(error)
    bad_input, failed = isinstance(error, UserError), isinstance(error, CheckFailed)
    if os.environ.get(TRACEBACK) or not (bad_input or failed or isinstance(error, KeyboardInterrupt)):
        traceback.print_exception(error)
    if isinstance(error, KeyboardInterrupt):
        print("distillkit: interrupted", file=sys.stderr)
        return 130
    if failed or (bad_input and os.environ.get("RANK", "0") == "0"):
        print(f"distillkit: error: {error}", file=sys.stderr)
    return 2 if bad_input else 3 if failed else 1
