"""Words masked, swapped and cut away: inputs of which a student learns its teacher's answers   (arXiv 1903.12136)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Dataset

from distillkit.errors import UserError
from distillkit.generation.base import at_least_one
from distillkit.generation.filters.base import SOURCE
from distillkit.generation.inputs import TEXTS
from distillkit.models.live import LiveModel
from distillkit.tasks.base import Row

LONGEST_PIECE = 5  # words of a piece that stands for the whole text: n-grams of Tang et al.


class Perturbation:
    """Mask words of existing rows, swap them, and cut pieces out of them (Tang et al. 2019, section 3.3).

    Each word is masked with `mask`, else swapped with `swap`: for one that stands behind the same word elsewhere in
    the rows, as often as it does there (the bigram noise of Xie et al. 2017, where Tang et al. need a tagger of parts
    of speech). With `piece`, 1 to 5 words in a row are then all that is left. No model is needed but the teacher, who
    says what the new texts mean to it.

    Args:
        variants: Of each row.
        mask: Probability that a word is masked; where the teacher's tokenizer has no mask, it is left out.
        swap: Probability that a word is swapped.
        piece: Probability that a text is cut down to a piece.
    """

    of_rows = True

    def __init__(self, variants: int = 10, mask: float = 0.1, swap: float = 0.1, piece: float = 0.25) -> None:
        for key, value in (("mask", mask), ("swap", swap), ("piece", piece)):
            if not 0 <= value <= 1:
                raise UserError(f"must be from 0 to 1, got {value}", where=key)
        if mask + swap + piece == 0:
            raise UserError("nothing would change a row", where="mask", fix="set one of mask, swap and piece above 0")
        if mask + swap > 1:
            raise UserError(f"mask and swap are {mask + swap:g} together, more than 1", where="swap")
        self.variants = at_least_one(variants, "variants")
        self.mask = mask
        self.swap = swap
        self.piece = piece

    def total(self, table: Dataset) -> int:
        """Return how many rows there are."""
        return len(table)

    def open(self, table: Dataset, bad: frozenset[int], seed: int, teacher: LiveModel) -> Perturbed:
        """Learn which words follow which."""
        return Perturbed(self, table, bad, seed, teacher.tokenizer.mask_token)


class Perturbed:
    """Rows, and the words that may be swapped for theirs.

    Args:
        settings: What is changed, and how often.
        table: The rows.
        bad: Those that are passed over.
        seed: Of the draws.
        mask: Text of the mask; None: masked words are left out.
    """

    def __init__(
        self, settings: Perturbation, table: Dataset, bad: frozenset[int], seed: int, mask: str | None
    ) -> None:
        self.settings = settings
        self.table = table
        self.bad = bad
        self.seed = seed
        self.mask = mask
        self.names = [name for name in TEXTS if name in table.column_names]
        self.followers = _followers(table, bad, self.names)

    def make(self, numbers: Sequence[int]) -> list[Row]:
        """Return the variants of some rows, in order; those that are like their row or each other only once."""
        numbers = [number for number in numbers if number not in self.bad]
        made = []
        for number, row in zip(numbers, self.table.select(numbers), strict=True):
            random = np.random.default_rng(np.random.SeedSequence((self.seed, number)))
            texts = [row[name].split() for name in self.names]
            seen = {tuple(" ".join(words) for words in texts)}
            for _ in range(self.settings.variants):
                variant = tuple(" ".join(self._changed(words, random)) for words in texts)
                if variant not in seen and all(variant):
                    seen.add(variant)
                    made.append({**dict(zip(self.names, variant, strict=True)), SOURCE: number})
        return made

    def facts(self) -> dict[str, Any]:
        """Return nothing: it costs no more than time."""
        return {}

    def _changed(self, words: list[str], random: np.random.Generator) -> list[str]:
        """Draw a variant of a text."""
        settings = self.settings
        lots, picks = random.random(len(words)), random.random(len(words))
        changed: list[str] = []
        for before, word, lot, pick in zip([None, *words], words, lots, picks, strict=False):
            if lot < settings.mask:
                changed += [] if self.mask is None else [self.mask]
            elif lot < settings.mask + settings.swap:
                others = self.followers[before]
                changed.append(others[int(pick * len(others))])
            else:
                changed.append(word)
        if random.random() < settings.piece:
            length = int(random.integers(1, LONGEST_PIECE + 1))
            start = int(random.integers(max(len(changed) - length, 0) + 1))
            changed = changed[start : start + length]
        return changed


def _followers(table: Dataset, bad: frozenset[int], names: list[str]) -> dict[str | None, list[str]]:
    """Return the words behind each word, as often as they stand there; behind None those that begin a text."""
    found: dict[str | None, list[str]] = defaultdict(list)
    good = [number for number in range(len(table)) if number not in bad]
    for row in table.select(good):
        for name in names:
            words = row[name].split()
            for before, word in zip([None, *words], words, strict=False):
                found[before].append(word)
    return dict(found)
