"""Bad rows: found with a reason, shown with their places, and refused or skipped."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from distillkit.errors import UserError

SHOWN = 3  # bad rows that a message names


def settle(
    bad: Mapping[int, str],
    rows: int,
    where: Callable[[int], str],
    on_bad_row: str,
    split: str,
    exact: bool = True,
    whole: bool = True,
) -> str | None:
    """Refuse bad rows, or say that they are skipped.

    Args:
        bad: Index of a row → what is wrong with it.
        rows: How many rows there are.
        where: Index → file and line.
        on_bad_row: "refuse" or "skip".
        split: For the note.
        exact: Whether these are all bad rows.
        whole: Whether these are all rows of the split, so that one has to be left.

    Returns:
        What to tell the user; None if no row is bad.

    Raises:
        UserError: If they are refused, or none is left.
    """
    if not bad:
        return None
    if on_bad_row == "refuse":
        first, *others = sorted(bad)
        least = "" if exact else "at least "
        others_too = f"{least}{len(others):,} more of {rows:,} rows are bad"
        more = f"{others_too}, such as {where(others[0])}: {bad[others[0]]}; " if others else ""
        raise UserError(bad[first], where=where(first), fix=f"{more}dataset.on_bad_row=skip leaves bad rows out")
    if whole and len(bad) == rows:
        raise UserError(f"every row of the {split} split is bad: {shown(bad, where)}", where="dataset")
    return f"{split}: {len(bad):,} of {rows:,} rows skipped: {shown(bad, where)}"


def shown(bad: Mapping[int, str], where: Callable[[int], str]) -> str:
    """List the first bad rows (index → what is wrong) by their places, and how many more there are."""
    return listed({index: bad[index] for index in sorted(bad)[:SHOWN]}, len(bad), where)


def listed(bad: Mapping[int, str], count: int, where: Callable[[int], str]) -> str:
    """List some of `count` rows by their places: "a.jsonl:3: text is empty; a.jsonl:7: …; 5 more"."""
    parts = [f"{where(index)}: {reason}" if reason else where(index) for index, reason in bad.items()]
    return "; ".join([*parts, f"{count - len(parts):,} more"] if count > len(parts) else parts)
