"""Answers that most samples of a prompt agree on."""

from __future__ import annotations

from collections import Counter

from distillkit.errors import UserError
from distillkit.generation.filters.base import Filter, Row, answer_of, samples
from distillkit.generation.filters.verifiers import found, pattern, same_form


class Agreement(Filter):
    """Keep the samples of a prompt whose final answer is the most frequent one (self-consistency, Wang et al. 2022).

    arXiv:2203.11171. Answers are compared as `ExactAnswer` does. Samples in which no answer is found, and those that
    disagree, are rejected; so are all of a prompt if two answers are equally frequent. `BestOf` after it leaves one.

    Args:
        extract: Regular expression of the final answer; the last match counts, of it the first group if there is one.
            None: the whole answer.
        min_share: Of the prompt's samples that agree, at least.
        min_samples: A prompt with fewer samples is rejected.
    """

    hint = "raise generate.samples, or lower its min_share"

    def __init__(self, extract: str | None = None, min_share: float = 0.5, min_samples: int = 2) -> None:
        if not 0 < min_share <= 1:
            raise UserError(f"must be above 0 and at most 1, got {min_share}", where="min_share")
        if min_samples < 1:
            raise UserError(f"must be at least 1, got {min_samples}", where="min_samples")
        self.extract = pattern(extract, "extract")
        self.min_share = min_share
        self.min_samples = min_samples

    def judge(self, rows: list[Row]) -> list[str | None]:
        """Reject the samples that are not of the majority."""
        answers = [found(self.extract, answer_of(row)) for row in rows]
        finals = [None if answer is None else same_form(answer) for answer in answers]
        reasons: list[str | None] = [None] * len(rows)
        for group in samples(rows):
            for index, reason in zip(group, self._vote([finals[index] for index in group]), strict=True):
                reasons[index] = reason
        return reasons

    def _vote(self, finals: list[str | None]) -> list[str | None]:
        votes = Counter(final for final in finals if final is not None)
        if len(finals) < self.min_samples:
            return [f"{len(finals)} samples"] * len(finals)
        if not votes:
            return ["no answer found"] * len(finals)
        (winner, most), *others = votes.most_common(2)
        if any(count == most for _, count in others):
            return [f"a tie of {most} of {len(finals)}"] * len(finals)
        if most < self.min_share * len(finals):
            return [f"only {most} of {len(finals)} agree"] * len(finals)
        return [None if final == winner else f"not the answer of {most} of {len(finals)}" for final in finals]
