"""What can be said in a number about a generated row, the higher the better; filters compare these."""

from __future__ import annotations

from typing import Any

import numpy as np

from distillkit.errors import UserError
from distillkit.generation.filters.base import ANSWER_TOKENS, LOG_PROB, Given, Row


class Score:
    """A `score` node: a cheap constructor with the YAML arguments, and a number for each row."""

    def check(self, given: Given) -> None:
        """Refuse a dataset that lacks what the score needs, before any row is generated."""

    def begin(self, given: Given) -> None:
        """Get ready for one pass over the rows."""

    def __call__(self, rows: list[Row]) -> list[float | None]:
        """Return the score of each row; None if it has none, which is worse than any.

        Args:
            rows: As a filter gets them.
        """
        raise NotImplementedError

    def facts(self) -> dict[str, Any]:
        """Return what the report says of its work."""
        return {}


class LogProbability(Score):
    """How likely the teacher held its answer: the natural logarithm of its probability, by default for each token.

    The sum favours short answers, the mean does not. It is the teacher's own, at temperature 1 and among all tokens.

    Args:
        per_token: Whether it is divided by the number of tokens.
    """

    def __init__(self, per_token: bool = True) -> None:
        self.per_token = per_token

    def __call__(self, rows: list[Row]) -> list[float | None]:
        """Return the log-probability of each answer; None for one without a token."""
        return [self._one(row) for row in rows]

    def _one(self, row: Row) -> float | None:
        if row.get(LOG_PROB) is None or row.get(ANSWER_TOKENS) is None:
            raise UserError(
                "the answers came without log-probabilities",
                fix="use generate=text; a server gives them with log_probs=true",
            )
        if not self.per_token:
            return float(row[LOG_PROB])
        return row[LOG_PROB] / row[ANSWER_TOKENS] if row[ANSWER_TOKENS] else None


class Certainty(Score):
    """How sure the teacher is of a row's soft label: the probability of the likeliest class.

    Of several labels to a row, which are each true or false, it is that of the label it is least sure of.
    """

    def __call__(self, rows: list[Row]) -> list[float | None]:
        """Return the certainty of each row."""
        return [_certainty(row) for row in rows]


def _certainty(row: Row) -> float:
    logits = np.asarray(row.get("teacher_logits") or [], dtype=np.float64)
    several = "labels" in row
    if len(logits) < (1 if several else 2):
        raise UserError("the rows carry no logits of several classes", fix="use generate=soft_labels")
    if several:  # 1 / (1 + e⁻ˣ) or its complement, whichever is larger
        return float((1 / (1 + np.exp(-np.abs(logits)))).min())
    return float(1 / np.exp(logits - logits.max()).sum())
