"""Masked language modelling: an item is a position whose token was hidden."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import AutoModelForMaskedLM

from distillkit.data.selection import all_but
from distillkit.errors import UserError
from distillkit.metrics.likelihood import likelihood_metrics
from distillkit.models.head import head_signal
from distillkit.signals import Batch, Model, Signal
from distillkit.tasks.base import Answers, Row, Task, attention_mask, pad
from distillkit.tasks.likelihood import likelihood_answers

MASKED, RANDOM = 0.8, 0.1  # of the chosen tokens; the rest stay as they are   (BERT, Devlin et al. 2019)
NO_WORD = -1  # of special tokens, which are never chosen


class MaskedLM(Task):
    """Guess hidden tokens of `text`.

    A text longer than `max_length` is cut into consecutive pieces. Of each piece `mask_share` of the tokens are
    chosen, at least one: 80 % of them become the mask token, 10 % a random token, 10 % stay. The choice is made anew
    each time that a piece is trained on, and always the same for an evaluation.

    Args:
        max_length: Tokens of a piece, the special ones included.
        min_length: Pieces of fewer tokens, the special ones not counted, are left out.
        mask_share: Of a piece's tokens that are to be guessed.
        whole_words: Choose all tokens of a word or none; a word that exceeds the share is passed over.
    """

    name = "masked_lm"
    required_columns = (("text",),)
    best_metric = "loss"
    metric_names = ("loss", "perplexity", "accuracy")
    metric_columns = ("loss", "hits", "items")
    has_classes = False
    random = True

    def __init__(
        self, max_length: int = 128, min_length: int = 2, mask_share: float = 0.15, whole_words: bool = False
    ) -> None:
        if not 1 <= min_length <= max_length:
            raise UserError(
                f"needs 1 ≤ min_length ≤ max_length, got {min_length} and {max_length}", where="task.max_length"
            )
        if not 0 < mask_share < 1:
            raise UserError(f"must be between 0 and 1, got {mask_share}", where="task.mask_share")
        self.max_length = max_length
        self.min_length = min_length
        self.mask_share = mask_share
        self.whole_words = whole_words

    def auto_class(self) -> Any:
        """Return the transformers AutoModel class."""
        return AutoModelForMaskedLM

    def encode(self, rows: dict[str, list[Any]], tokenizer: Any, label_ids: dict[str, int] | None) -> dict[str, list]:  # noqa: ARG002
        """Tokenise and cut; `words` tells which word of its text each token belongs to."""
        _check_tokenizer(tokenizer)
        if self.max_length - tokenizer.num_special_tokens_to_add() < self.min_length:
            raise UserError(f"{self.max_length} tokens leave no room for a text", where="task.max_length")
        encoded = tokenizer(rows["text"], truncation=True, max_length=self.max_length, return_overflowing_tokens=True)
        optional = [name for name in ("token_type_ids",) if name in encoded]
        columns: dict[str, list] = {name: [] for name in ("row", "input_ids", "words", *optional)}
        for index, row in enumerate(encoded["overflow_to_sample_mapping"]):
            words = [NO_WORD if word is None else word for word in encoded.word_ids(index)]
            if sum(word != NO_WORD for word in words) >= self.min_length:
                columns["row"].append(row)
                columns["words"].append(words)
                for name in ("input_ids", *optional):
                    columns[name].append(encoded[name][index])
        return columns

    def collate(self, rows: list[Row], tokenizer: Any) -> Batch:
        """Pad rows and hide tokens; each row's `draw` decides which."""
        ordinary = all_but(tokenizer.all_special_ids, len(tokenizer))
        shown, chosen = [], []
        for row in rows:
            random = np.random.default_rng(row["draw"])
            places = self._choose(np.asarray(row["words"]), random)
            shown.append(_hide(np.asarray(row["input_ids"]), places, tokenizer.mask_token_id, ordinary, random))
            chosen.append(np.isin(np.arange(len(row["words"])), places).astype(int).tolist())
        ids = [row["input_ids"] for row in rows]
        counted = pad(chosen, 0).bool()
        labels = pad(ids, tokenizer.pad_token_id)[counted]
        inputs = {"input_ids": pad(shown, tokenizer.pad_token_id), "attention_mask": attention_mask(ids)}
        if "token_type_ids" in rows[0]:
            inputs["token_type_ids"] = pad([row["token_type_ids"] for row in rows], 0)
        return Batch(inputs, counted, labels, taught=torch.ones_like(labels, dtype=torch.bool))

    def _choose(self, words: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """Return the positions that are to be guessed."""
        free = np.flatnonzero(words != NO_WORD)
        budget = max(1, round(self.mask_share * len(free)))
        if not self.whole_words:
            return random.permutation(free)[:budget]
        order = random.permutation(np.unique(words[free]))
        groups: list[list[int]] = [np.flatnonzero(words == word).tolist() for word in order]
        chosen: list[int] = []
        for group in groups:
            if len(chosen) + len(group) <= budget:
                chosen.extend(group)
        return np.array(chosen or min(groups, key=len))  # of long words only: the shortest

    def signal(self, model: Any, batch: Batch) -> Signal:
        """Run the model up to its output head: `HeadLogits` over the items."""
        return head_signal(model, batch)

    def answer(self, model: Model, batch: Batch) -> Answers:
        """Return what each row's hidden tokens cost (nats), hits, and the most likely tokens."""
        logits = model(batch).logits
        assert logits is not None
        return likelihood_answers(logits, batch)

    def metrics(self, answers: Answers) -> dict[str, float]:
        """Return nats a token, perplexity and accuracy, over all hidden tokens alike."""
        return likelihood_metrics(answers["loss"], answers["hits"], answers["items"])


def _hide(
    ids: np.ndarray, places: np.ndarray, mask: int, ordinary: np.ndarray, random: np.random.Generator
) -> list[int]:
    """Put the mask token, or a random one of the `ordinary` tokens, in place of what is to be guessed."""
    dice = random.random(len(places))
    others = random.choice(ordinary, len(places))
    shown = ids.copy()
    shown[places] = np.where(dice < MASKED, mask, np.where(dice < MASKED + RANDOM, others, ids[places]))
    return shown.tolist()


def _check_tokenizer(tokenizer: Any) -> None:
    if tokenizer.mask_token_id is None:
        raise UserError(
            "the tokenizer has no mask token",
            where="task",
            fix="use that of a masked language model, or train one with student.tokenizer.mask=true",
        )
    if not tokenizer.is_fast:
        raise UserError(f"{type(tokenizer).__name__} does not tell which word a token belongs to", where="task")
