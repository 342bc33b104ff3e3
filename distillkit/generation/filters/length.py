"""Answers that are too short or too long."""

from __future__ import annotations

from collections.abc import Iterator

from distillkit.errors import UserError
from distillkit.generation.filters.base import ANSWER_TOKENS, Filter, Given, Row, answer_of, prompt_of
from distillkit.generation.filters.words import words


class Length(Filter):
    """Reject answers outside of limits; one that is None is none.

    Args:
        min_chars: Characters of the answer.
        max_chars: Likewise.
        min_words: Words; a character of Chinese, Japanese or Thai is one.
        max_words: Likewise.
        min_tokens: Tokens of the teacher.
        max_tokens: Likewise.
        min_ratio: Characters of the answer for each character of its prompt; a row without a prompt has no ratio.
        max_ratio: Likewise.
    """

    hint = "widen its limits"

    def __init__(
        self,
        min_chars: int | None = None,
        max_chars: int | None = None,
        min_words: int | None = None,
        max_words: int | None = None,
        min_tokens: int | None = None,
        max_tokens: int | None = None,
        min_ratio: float | None = None,
        max_ratio: float | None = None,
    ) -> None:
        self.limits = {
            "characters": (min_chars, max_chars),
            "words": (min_words, max_words),
            "tokens": (min_tokens, max_tokens),
            "times its prompt": (min_ratio, max_ratio),
        }
        self.limits = {unit: ends for unit, ends in self.limits.items() if ends != (None, None)}
        if not self.limits:
            raise UserError("no limit is given", fix="set min_chars, max_tokens, …")
        for unit, (low, high) in self.limits.items():
            if (low or 0) < 0 or (high is not None and high < (low or 0)):
                raise UserError(f"no answer has {_range(low, high)} {unit}")
        self.tokenizer: object = None

    def begin(self, given: Given) -> None:
        """Take the tokenizer."""
        self.tokenizer = given.tokenizer

    def judge(self, rows: list[Row]) -> list[str | None]:
        """Reject by the first limit that does not hold."""
        return [next(self._broken(row), None) for row in rows]

    def _broken(self, row: Row) -> Iterator[str]:
        for unit, (low, high) in self.limits.items():
            size = self._size(row, unit)
            if size is not None and not (low or 0) <= size <= (float("inf") if high is None else high):
                yield f"{size:.4g} {unit}, not {_range(low, high)}"

    def _size(self, row: Row, unit: str) -> float | None:
        answer = answer_of(row)
        if unit == "characters":
            return len(answer)
        if unit == "words":
            return len(words(answer))
        if unit == "tokens":
            return self._tokens(row, answer)
        prompt = prompt_of(row)
        return len(answer) / len(prompt) if prompt else None

    def _tokens(self, row: Row, answer: str) -> int:
        if row.get(ANSWER_TOKENS) is not None:
            return int(row[ANSWER_TOKENS])
        if not callable(self.tokenizer):
            raise UserError("nobody counts tokens here", where="min_tokens, max_tokens", fix="use words")
        return len(self.tokenizer(answer, add_special_tokens=False)["input_ids"])


def _range(low: float | None, high: float | None) -> str:
    if high is None:
        return f"at least {low:g}"
    return f"at most {high:g}" if low is None else f"{low:g} to {high:g}"
