"""Rows that hold what a model will be judged on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from distillkit.data.columns import COLUMNS
from distillkit.data.rows import Rows, Source
from distillkit.errors import UserError
from distillkit.generation.filters.base import Filter, Given, Row, answer_of, prompt_of
from distillkit.generation.filters.seen import Seen
from distillkit.generation.filters.words import hashes, runs, words

READ = 1024  # rows at a time
TEXTS = tuple(name for name, kind in COLUMNS.items() if kind in ("text", "messages") and name not in ("id", "system"))


class EvaluationOverlap(Filter):
    """Reject rows that share a run of words with an evaluation split (Brown et al. 2020, arXiv:2005.14165, appendix C).

    A text of the evaluation that is shorter than such a run counts where it is the whole prompt or the whole answer,
    unless it is so short that it may well be there by chance. Runs that stand in many evaluation rows are boilerplate,
    such as the wording of a template, and do not count.

    Args:
        splits: Of the dataset; those that are there.
        sets: Name → another dataset, all of whose splits are compared with.
        ngram: Words of a run.
        min_words: Of a shorter text that counts.
        max_rows: A run in more evaluation rows than that is boilerplate.
    """

    hint = "are the prompts themselves of an evaluation split? else raise its ngram"

    def __init__(
        self,
        splits: list[str] | None = None,
        sets: Mapping[str, Source] | None = None,
        ngram: int = 13,
        min_words: int = 5,
        max_rows: int = 10,
    ) -> None:
        if min(ngram, min_words, max_rows) < 1:
            where = "ngram, min_words, max_rows"
            raise UserError(f"must be at least 1, got {min(ngram, min_words, max_rows)}", where=where)
        self.splits = ["validation", "test"] if splits is None else splits
        self.sets = dict(sets or {})
        self.ngram = ngram
        self.min_words = min_words
        self.max_rows = max_rows
        self.known = Seen()

    def check(self, given: Given) -> None:
        """Refuse a dataset that has nothing to compare with."""
        if not self.sets and not any(split in given.rows.splits for split in self.splits):
            raise UserError(
                f"there is no {' or '.join(self.splits)} split to compare with",
                fix="name one in dataset, or switch this filter off",
            )

    def begin(self, given: Given) -> None:
        """Read the evaluation rows."""
        tables = [(given.rows, split) for split in self.splits if split in given.rows.splits]
        for source in self.sets.values():
            rows = source.load()
            tables += [(rows, split) for split in rows.splits]
        keys = [keys for rows, split in tables for keys in self._evaluation(rows, split)]
        found, counts = np.unique(np.concatenate([hashes([]), *keys]), return_counts=True)
        found = found[counts <= self.max_rows]
        self.known = Seen()
        self.known.add(found, np.zeros(len(found), dtype=np.uint32))

    def _evaluation(self, rows: Rows, split: str) -> Iterator[np.ndarray]:
        """Yield the runs of each row, each once."""
        table = rows.split(split)
        columns = [name for name in TEXTS if name in table.column_names]
        for start in range(0, len(table), READ):
            block = table.select_columns(columns)[start : start + READ]
            for values in zip(*block.values(), strict=True):
                found = [run for value in values for text in _texts(value) for run in self._runs(text)]
                yield np.unique(hashes(found))

    def _runs(self, text: str) -> list[str]:
        parts = words(text)
        return runs(parts, self.ngram) if len(parts) >= min(self.min_words, self.ngram) else []

    def judge(self, rows: list[Row]) -> list[str | None]:
        """Reject rows of whose prompt or answer a run is known."""
        return [self._reason(row) for row in rows]

    def _reason(self, row: Row) -> str | None:
        for name, text in (("prompt", prompt_of(row)), ("answer", answer_of(row))):
            found = self._runs(text)
            known = np.flatnonzero(self.known.contains(hashes(found)))
            if len(known):
                return f"its {name} holds '{found[known[0]]}'"
        return None


def _texts(value: object) -> list[str]:
    """Return the texts in the value of a column: one, or those of the turns of a conversation."""
    if isinstance(value, list):
        return [str(turn["content"]) for turn in value if turn.get("content")]
    return [value] if isinstance(value, str) and value else []
