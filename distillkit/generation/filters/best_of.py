"""The best of several answers to one prompt."""

from __future__ import annotations

from typing import Any

from distillkit.errors import UserError
from distillkit.generation.filters.base import Filter, Given, Row, samples
from distillkit.generation.filters.scores import Score


class BestOf(Filter):
    """Keep the best answers to each prompt; of equally good ones the first.

    Args:
        score: What is compared.
        keep: How many answers to a prompt.
    """

    hint = "use a score that the answers have"

    def __init__(self, score: Score, keep: int = 1) -> None:
        if keep < 1:
            raise UserError(f"must be at least 1, got {keep}", where="keep")
        self.score = score
        self.keep = keep

    def check(self, given: Given) -> None:
        """Refuse a dataset that lacks what the score needs."""
        self.score.check(given)

    def begin(self, given: Given) -> None:
        """Get the score ready."""
        self.score.begin(given)

    def judge(self, rows: list[Row]) -> list[str | None]:
        """Reject all but the best answers to each prompt, and those without a score."""
        scores = self.score(rows)
        reasons: list[str | None] = [None] * len(rows)
        for group in samples(rows):
            ranked = sorted((-score, index) for index in group if (score := scores[index]) is not None)
            for place, (worse, index) in enumerate(ranked[self.keep :], self.keep + 1):
                reasons[index] = f"place {place} of {len(group)}: {-worse:.4g}"
            for index in group:
                if scores[index] is None:
                    reasons[index] = "no score"
        return reasons

    def facts(self) -> dict[str, Any]:
        """Return what the report says of the score."""
        return self.score.facts()
