"""Answers that say nothing."""

from __future__ import annotations

from distillkit.generation.filters.base import Filter, Row, answer_of


class NotEmpty(Filter):
    """Reject answers without a visible character."""

    hint = "ask other prompts, or a teacher that answers"

    def judge(self, rows: list[Row]) -> list[str | None]:
        """Reject answers of nothing but white space."""
        return [None if answer_of(row).strip() else "empty" for row in rows]
