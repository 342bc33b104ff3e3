"""Answers that did not end by themselves."""

from __future__ import annotations

from distillkit.generation.filters.base import FINISHED, Filter, Row


class Finished(Filter):
    """Reject answers that were cut off: they teach to stop in the middle.

    Args:
        continuations: Also reject a continued `text` that was cut off. Its end teaches nothing wrong, since training
            reads `finished`.
    """

    hint = "raise generate.max_new_tokens"

    def __init__(self, continuations: bool = False) -> None:
        self.continuations = continuations

    def judge(self, rows: list[Row]) -> list[str | None]:
        """Reject what is marked as not finished; a row that says nothing about it is kept."""
        return [self._reason(row) for row in rows]

    def _reason(self, row: Row) -> str | None:
        if row.get(FINISHED, True) is not False or ("text" in row and not self.continuations):
            return None
        return f"cut off ({row.get('finish_reason') or 'length'})"
