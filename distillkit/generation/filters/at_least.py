"""Rows whose score is too low."""

from __future__ import annotations

from typing import Any

from distillkit.generation.filters.base import Filter, Given, Row
from distillkit.generation.filters.scores import Score


class AtLeast(Filter):
    """Reject rows whose score is below a limit, or that have none.

    Args:
        score: What is compared.
        minimum: The lowest score that is kept.
    """

    hint = "lower its minimum"

    def __init__(self, score: Score, minimum: float) -> None:
        self.score = score
        self.minimum = minimum

    def check(self, given: Given) -> None:
        """Refuse a dataset that lacks what the score needs."""
        self.score.check(given)

    def begin(self, given: Given) -> None:
        """Get the score ready."""
        self.score.begin(given)

    def judge(self, rows: list[Row]) -> list[str | None]:
        """Reject what is below the limit."""
        return [self._reason(score) for score in self.score(rows)]

    def _reason(self, score: float | None) -> str | None:
        if score is None:
            return "no score"
        return None if score >= self.minimum else f"{score:.4g}, not at least {self.minimum:g}"

    def facts(self) -> dict[str, Any]:
        """Return what the report says of the score."""
        return self.score.facts()
