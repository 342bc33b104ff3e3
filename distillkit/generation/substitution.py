"""Words replaced by others that fit their context   (TinyBERT's augmentation, arXiv 1909.10351, Algorithm 1)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from distillkit.data.batches import by_length
from distillkit.errors import UserError
from distillkit.generation.base import at_least_one
from distillkit.generation.filters.base import SOURCE
from distillkit.generation.inputs import TEXTS
from distillkit.models.live import LiveModel
from distillkit.models.load import load_live
from distillkit.tasks.base import Row, attention_mask, pad
from distillkit.tasks.masked_lm import MaskedLM

SPARE = 4  # words that are looked up beyond the candidates, as some are the one that is there, in other letters


class Substitution:
    """Replace words of existing rows by those that a masked language model finds likely in their places.

    Each word is masked by itself, and the `candidates` most likely whole words are looked up. In each variant, each
    word is replaced with `probability`, by any of its candidates alike. Numbers and punctuation stay. Unlike TinyBERT,
    a word of several tokens is replaced by the same model too, and not by word vectors.

    Args:
        masked_lm: Folder or hub id of the masked language model.
        variants: Of each row.
        probability: That a word is replaced: p_t of the algorithm.
        candidates: Most likely words to choose among: K of the algorithm.
        batch_size: Rows of a forward pass of the masked language model.
        dtype: Of its weights: float32, bfloat16 or float16.
    """

    of_rows = True

    def __init__(
        self,
        masked_lm: str,
        variants: int = 4,
        probability: float = 0.4,
        candidates: int = 15,
        batch_size: int = 64,
        dtype: str = "float32",
    ) -> None:
        if not 0 < probability <= 1:
            raise UserError(f"must be above 0 and at most 1, got {probability}", where="probability")
        self.masked_lm = masked_lm
        self.variants = at_least_one(variants, "variants")
        self.probability = probability
        self.candidates = at_least_one(candidates, "candidates")
        self.batch_size = at_least_one(batch_size, "batch_size")
        self.dtype = dtype

    def total(self, table: Dataset) -> int:
        """Return how many rows there are."""
        return len(table)

    def open(self, table: Dataset, bad: frozenset[int], seed: int, teacher: LiveModel) -> Substitutes:
        """Load the masked language model."""
        model = load_live(self.masked_lm, MaskedLM(max_length=16), "generate.maker.masked_lm", dtype=self.dtype)
        if not model.tokenizer.is_fast or model.tokenizer.mask_token_id is None:
            raise UserError("no masked language model with a fast tokenizer", where="generate.maker.masked_lm")
        return Substitutes(self, table, bad, seed, model.to(teacher.device).eval())


@dataclass
class Place:
    """A word that can be replaced.

    Attributes:
        ids: Tokens of its text, the word masked.
        at: Where the mask is.
        start: Of the word, in characters.
        stop: Likewise.
        own: The word.
        words: That fit in its place, the likeliest first; none before they are looked up.
    """

    ids: list[int]
    at: int
    start: int
    stop: int
    own: str
    words: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Plan:
    """What becomes of a text.

    Attributes:
        text: As it is.
        places: Of its words.
        replaced: bool `[variants, places]`.
        ranks: int64 `[variants, places]`: which of the fitting words comes there.
    """

    text: str
    places: list[Place]
    replaced: np.ndarray
    ranks: np.ndarray

    @property
    def needed(self) -> list[Place]:
        """The places where some variant replaces the word."""
        return [self.places[index] for index in np.flatnonzero(self.replaced.any(axis=0))]

    def variants(self) -> list[str]:
        """Return the text with words replaced."""
        found = []
        for which, rank in zip(self.replaced, self.ranks, strict=True):
            parts, end = [], 0
            for index in np.flatnonzero(which).tolist():
                place = self.places[index]
                parts += [self.text[end : place.start], place.words[rank[index] % len(place.words)]]
                end = place.stop
            found.append("".join([*parts, self.text[end:]]))
        return found


class Substitutes:
    """A masked language model and the rows whose words it replaces.

    Args:
        settings: What is replaced.
        table: The rows.
        bad: Those that are passed over.
        seed: Of the draws.
        model: The masked language model.
    """

    def __init__(
        self, settings: Substitution, table: Dataset, bad: frozenset[int], seed: int, model: LiveModel
    ) -> None:
        self.settings = settings
        self.table = table
        self.bad = bad
        self.seed = seed
        self.model = model
        self.tokenizer = model.tokenizer
        self.words, self.whole = _whole_words(self.tokenizer, model.model.config.vocab_size)
        config = model.model.config
        special = 2 if config.model_type in ("roberta", "xlm-roberta", "camembert") else 0  # positions that none has
        self.longest = config.max_position_embeddings - special

    def make(self, numbers: Sequence[int]) -> list[Row]:
        """Return the variants of some rows, in order; those that are like their row or each other only once."""
        numbers = [number for number in numbers if number not in self.bad]
        rows = list(self.table.select(numbers))
        names = [name for name in TEXTS if name in self.table.column_names]
        plans = [self._plans(number, [row[name] for name in names]) for number, row in zip(numbers, rows, strict=True)]
        self._look_up([place for several in plans for plan in several for place in plan.needed])
        made = []
        for number, several in zip(numbers, plans, strict=True):
            seen = {tuple(plan.text for plan in several)}
            for texts in zip(*(plan.variants() for plan in several), strict=True):
                if texts not in seen:
                    seen.add(texts)
                    made.append({**dict(zip(names, texts, strict=True)), SOURCE: number})
        return made

    def facts(self) -> dict[str, Any]:
        """Return nothing: it costs no more than time."""
        return {}

    def _plans(self, number: int, texts: list[str]) -> list[Plan]:
        """Draw what becomes of the texts of a row."""
        random = np.random.default_rng(np.random.SeedSequence((self.seed, number)))
        plans = []
        for text in texts:
            places = list(self._places(text))
            shape = (self.settings.variants, len(places))
            replaced = random.random(shape) < self.settings.probability
            plans.append(Plan(text, places, replaced, random.integers(self.settings.candidates, size=shape)))
        return plans

    def _places(self, text: str) -> Iterator[Place]:
        """Find the words that can be replaced, within what the model can read."""
        encoded = self.tokenizer(text, truncation=True, max_length=self.longest, return_offsets_mapping=True)
        ids, offsets, owners = encoded["input_ids"], encoded["offset_mapping"], encoded.word_ids()
        for word in dict.fromkeys(owner for owner in owners if owner is not None):
            tokens = [index for index, owner in enumerate(owners) if owner == word]
            start, stop = offsets[tokens[0]][0], offsets[tokens[-1]][1]
            start += len(text[start:stop]) - len(text[start:stop].lstrip())
            if text[start:stop].isalpha():
                masked = [*ids[: tokens[0]], self.tokenizer.mask_token_id, *ids[tokens[-1] + 1 :]]
                yield Place(masked, tokens[0], start, stop, text[start:stop])

    @torch.no_grad()
    def _look_up(self, places: list[Place]) -> None:
        """Find the most likely words for each place, other than the one that is there."""
        for batch in by_length(np.array([len(place.ids) for place in places]), self.settings.batch_size):
            chosen = [places[index] for index in batch]
            ids = [place.ids for place in chosen]
            inputs = {"input_ids": pad(ids, self.tokenizer.pad_token_id), "attention_mask": attention_mask(ids)}
            inputs = {name: tensor.to(self.model.device) for name, tensor in inputs.items()}
            at = torch.tensor([place.at for place in chosen])
            logits = self.model.model(**inputs).logits[torch.arange(len(chosen)), at].float().cpu()
            count = min(self.settings.candidates + SPARE, int(self.whole.sum()))
            best = logits.masked_fill(~self.whole, -torch.inf).topk(count).indices.tolist()
            for place, likely in zip(chosen, best, strict=True):
                words = [self.words[token] for token in likely if self.words[token].lower() != place.own.lower()]
                place.words = [_as(place.own, word) for word in words[: self.settings.candidates]] or [place.own]


def _whole_words(tokenizer: Any, size: int) -> tuple[list[str], torch.Tensor]:
    """Return the text of every token, and which tokens are a whole word behind another one: bool `[vocab]`."""
    words = [tokenizer.decode([token]).strip() for token in range(min(size, len(tokenizer)))]
    words += [""] * (size - len(words))
    encoded = tokenizer([f"a {word}" for word in words], add_special_tokens=False)["input_ids"]
    special = set(tokenizer.all_special_ids)
    first = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = [
        word.isalpha() and ids == [*first, token] and token not in special
        for token, (word, ids) in enumerate(zip(words, encoded, strict=True))
    ]
    if not any(whole):
        raise UserError("its vocabulary has no whole words", where="generate.maker.masked_lm")
    return words, torch.tensor(whole)


def _as(own: str, word: str) -> str:
    """Write a word with a capital where its predecessor has one."""
    return word.capitalize() if own[0].isupper() and word.islower() else word
