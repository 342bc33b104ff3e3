"""Answers that go round in circles."""

from __future__ import annotations

import re
from collections.abc import Iterator

from distillkit.errors import UserError
from distillkit.generation.filters.base import Filter, Row, answer_of
from distillkit.generation.filters.words import runs, words


class Repetition(Filter):
    """Reject answers that repeat themselves, by measures of Rae et al. 2021 (arXiv:2112.11446, table A1).

    The limits leave songs, tables and code alone; a model that is caught in a loop is far above them.

    Args:
        ngram: Words of a run.
        max_ngrams: Largest share of the answer's runs of words that stood in it before; None: any.
        max_lines: Largest share of its lines that stood in it before, of those with a word; None: any.
        max_run: Most equal characters in a row; None: any.
    """

    hint = "raise its limits, or generate.temperature"

    def __init__(
        self,
        ngram: int = 4,
        max_ngrams: float | None = 0.5,
        max_lines: float | None = 0.5,
        max_run: int | None = 100,
    ) -> None:
        if ngram < 1:
            raise UserError(f"must be at least 1, got {ngram}", where="ngram")
        for name, share in (("max_ngrams", max_ngrams), ("max_lines", max_lines)):
            if share is not None and not 0 <= share <= 1:
                raise UserError(f"must be a share from 0 to 1, got {share}", where=name)
        if max_run is not None and max_run < 1:
            raise UserError(f"must be at least 1, got {max_run}", where="max_run")
        self.ngram = ngram
        self.max_ngrams = max_ngrams
        self.max_lines = max_lines
        self.run = None if max_run is None else re.compile(rf"(\S)\1{{{max_run},}}")

    def judge(self, rows: list[Row]) -> list[str | None]:
        """Reject by the first measure that is over its limit."""
        return [next(self._found(answer_of(row)), None) for row in rows]

    def _found(self, text: str) -> Iterator[str]:
        if self.max_ngrams is not None:
            share = repeated(runs(words(text), self.ngram))
            if share > self.max_ngrams:
                yield f"{share:.0%} of its runs of {self.ngram} words repeat"
        if self.max_lines is not None:
            share = repeated([line.strip() for line in text.splitlines() if words(line)])
            if share > self.max_lines:
                yield f"{share:.0%} of its lines repeat"
        if self.run is not None and (found := self.run.search(text)):
            yield f"{len(found[0])} times {found[1]!r} in a row"


def repeated(parts: list[str]) -> float:
    """Return the share of parts that equal an earlier one."""
    return 1 - len(set(parts)) / len(parts) if parts else 0.0
