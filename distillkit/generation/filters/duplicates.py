"""Rows that say the same as an earlier one."""

from __future__ import annotations

import numpy as np

from distillkit.generation.filters.base import Filter, Given, Of, Row, text_of
from distillkit.generation.filters.seen import Seen
from distillkit.generation.filters.words import hashes


class Duplicates(Filter):
    """Reject rows that equal an earlier one, whatever their case and white space; rows without text are kept.

    Remembers a hash of 64 bits for each row; among a million rows, two different ones share a hash with a probability
    of 3·10⁻⁸.

    Args:
        of: What is compared: the whole "row" (prompt and answer), the "answer" or the "prompt".
    """

    hint = "raise generate.temperature, or ask more prompts"

    def __init__(self, of: Of = "row") -> None:
        self.of: Of = of
        self.seen = Seen()

    def begin(self, given: Given) -> None:  # noqa: ARG002
        """Forget all rows."""
        self.seen = Seen()

    def judge(self, rows: list[Row]) -> list[str | None]:
        """Keep the first of equal rows."""
        texts = [" ".join(text_of(row, self.of).casefold().split()) for row in rows]
        keys = hashes(texts)
        new = np.zeros(len(keys), dtype=bool)
        new[np.unique(keys, return_index=True)[1]] = True
        new &= ~self.seen.contains(keys)
        self.seen.add(keys[new], np.zeros(new.sum(), dtype=np.uint32))
        return [
            None if first or not text else f"the {self.of} stood before"
            for first, text in zip(new.tolist(), texts, strict=True)
        ]
