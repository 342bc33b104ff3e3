"""The one error that users see: what is wrong, where, and what to do."""

from __future__ import annotations


class UserError(Exception):
    """Report bad input in one line.

    The command line prints it on stderr without a traceback and exits with code 2.

    Args:
        what: What is wrong, with the offending value.
        where: The key, file or line, if there is one.
        fix: What the user can do about it.
    """

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        line = what if where is None else f"{where}: {what}"
        if fix is not None:
            line = f"{line}; {fix}"
        super().__init__(" ".join(line.split()))


def did_you_mean(wrong: str, known: list[str]) -> str | None:
    """Phrase the nearest of `known` as a suggestion, or list them when none is near."""
    from difflib import get_close_matches

    near = get_close_matches(wrong, known, n=1, cutoff=0.5)
    if near:
        return f"did you mean '{near[0]}'?"
    return f"choose one of: {', '.join(sorted(known))}" if known else None
