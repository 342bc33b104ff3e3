"""Tagging: an item is a word, read off at its first token."""

from __future__ import annotations

from itertools import pairwise
from math import fsum
from operator import eq
from typing import Any

import torch
from torch.nn import functional
from transformers import AutoModelForTokenClassification

from distillkit.data.rows import check_choice
from distillkit.errors import UserError
from distillkit.metrics.tagging import OUTSIDE, TAGGING, entity_counts, not_entities, tagging_metrics
from distillkit.signals import IGNORE, Batch, Model, Signal
from distillkit.tasks.base import Answers, Row, Task, attention_mask, pad
from distillkit.tasks.metric_choice import chosen_metrics
from distillkit.tasks.text import check_lengths, cutting, require_offsets

NO_WORD = -1  # of tokens that are no items
SUBWORDS = ("first", "all")


class TokenClassification(Task):
    """A tag for each of the words in `tokens`.

    The words are joined by blanks and tokenised as a text. A word counts at its first token. Words that lie beyond
    `max_length`, or that the tokenizer leaves out, have no token: they teach nothing, and are judged as tagged "O".

    Args:
        max_length: Tokens of a row.
        truncation: The side on which longer rows are cut: "right" or "left".
        subwords: Which tokens of a word count in training: "first", or "all", with I- in place of B- after the first.
            The first one alone is judged.
        metrics: What is reported: f1, precision and recall of entities, accuracy of words. The first one chooses the
            best weights. Tags that are not in the BIO scheme, such as parts of speech, have accuracy only.
    """

    name = "token_classification"
    required_columns = (("tokens",),)
    metric_columns = ("tags", "entities", "hits", "words", "loss", "items")
    has_classes = True
    adds_head = True
    soft_labels = False
    label_column = "tags"

    def __init__(
        self,
        max_length: int = 128,
        truncation: str = "right",
        subwords: str = "first",
        metrics: list[str] | None = None,
    ) -> None:
        check_lengths(max_length, truncation)
        check_choice(subwords, SUBWORDS, "task.subwords")
        self.max_length = max_length
        self.truncation = truncation
        self.subwords = subwords
        self.metric_names = chosen_metrics(metrics, TAGGING, TAGGING)
        self.best_metric = self.metric_names[0]

    def auto_class(self) -> Any:
        """Return the transformers AutoModel class."""
        return AutoModelForTokenClassification

    def encode(self, rows: dict[str, list[Any]], tokenizer: Any, label_ids: dict[str, int] | None) -> dict[str, list]:
        """Tokenise and align.

        `words` tells which word each token is an item of, `NO_WORD` if of none; `labels` its tag. `tags` are those of
        all words (`IGNORE` where the row has none), and `names` what the ids mean.
        """
        require_offsets(tokenizer)
        names = list(label_ids or {})
        self._check_scheme(names)
        sentences = rows["tokens"]
        with cutting(tokenizer, self.truncation):
            options = {"truncation": True, "max_length": self.max_length, "return_offsets_mapping": True}
            encoded = tokenizer([" ".join(words) for words in sentences], **options)
        columns: dict[str, list] = {name: [] for name in ("words", "labels", "tags", "truncated")}
        bad = []
        tags = rows.get("tags") or [None] * len(sentences)
        for index, (words, own, offsets) in enumerate(zip(sentences, tags, encoded["offset_mapping"], strict=True)):
            if own is not None and (len(own) != len(words) or None in own):
                bad.append((index, f"{len(words)} tokens have {len(own) - own.count(None)} tags"))
                own = None
            owners = word_of_token(words, offsets)
            known = [IGNORE] * len(words) if own is None else [(label_ids or {})[tag] for tag in own]
            columns["words"].append(owners if self.subwords == "all" else _firsts(owners))
            columns["labels"].append(self._token_labels(owners, known, names))
            columns["tags"].append(known)
            columns["truncated"].append(bool(encoded.encodings[index].overflowing))
        optional = {name: encoded[name] for name in ("token_type_ids",) if name in encoded}
        optional |= {"bad": bad} if bad else {}
        return columns | {"input_ids": encoded["input_ids"], "names": [names] * len(sentences)} | optional

    def _check_scheme(self, names: list[str]) -> None:
        others = not_entities(names)
        if others and set(self.metric_names) & {"f1", "precision", "recall"}:
            raise UserError(
                f"{', '.join(others[:3])} are no tags of entities (O, B-…, I-…)",
                where="task.metrics",
                fix="set task.metrics=[accuracy]",
            )

    def _token_labels(self, owners: list[int], tags: list[int], names: list[str]) -> list[int]:
        """Return the tag of each token that counts: of a word's later tokens, that of going on with its entity."""
        labels = [IGNORE if word == NO_WORD else tags[word] for word in owners]
        if self.subwords == "first":
            return [label if first != NO_WORD else IGNORE for label, first in zip(labels, _firsts(owners), strict=True)]
        for place, (before, word) in enumerate(pairwise(owners), start=1):
            if word == before and labels[place] != IGNORE:
                inside = names[labels[place]].replace("B-", "I-", 1)
                labels[place] = names.index(inside) if inside in names else labels[place]
        return labels

    def collate(self, rows: list[Row], tokenizer: Any) -> Batch:
        """Pad rows; an item is a token that counts."""
        ids = [row["input_ids"] for row in rows]
        inputs = {"input_ids": pad(ids, tokenizer.pad_token_id), "attention_mask": attention_mask(ids)}
        if "token_type_ids" in rows[0]:
            inputs["token_type_ids"] = pad([row["token_type_ids"] for row in rows], 0)
        counted = pad([row["words"] for row in rows], NO_WORD) != NO_WORD
        labels = pad([row["labels"] for row in rows], IGNORE)[counted]
        extras = {name: [row[name] for row in rows] for name in ("words", "tags", "names")}
        return Batch(inputs, counted, labels, taught=torch.ones_like(labels, dtype=torch.bool), extras=extras)

    def signal(self, model: Any, batch: Batch) -> Signal:
        """Run the model: logits `[items, tags]`."""
        return Signal(self.item_logits({"logits": model(**batch.inputs).logits}, batch))

    def answer(self, model: Model, batch: Batch) -> Answers:
        """Return of each row tags and predictions (by name), how many entities and words are right, and the loss.

        The loss is summed over the row's items. A row without tags has None in their place, and NaN for a loss.
        """
        logits = model(batch).logits
        assert logits is not None
        values = logits.rows(0, len(logits)).float()
        losses = functional.cross_entropy(values, batch.labels, reduction="none", ignore_index=IGNORE)
        items = batch.counted.sum(dim=1).tolist()
        answers: Answers = {name: [] for name in ("prediction", *self.metric_columns)}
        found = zip(values.argmax(dim=-1).cpu().split(items), losses.split(items), strict=True)
        for row, (predicted, loss) in enumerate(found):
            words, ids, names = (batch.extras[name][row] for name in ("words", "tags", "names"))
            prediction = _by_word(words, [names[tag] for tag in predicted.tolist()], len(ids))
            answers["prediction"].append(prediction)
            tags = None if IGNORE in ids else [names[tag] for tag in ids]
            answers["tags"].append(tags)
            answers["entities"].append(entity_counts(tags or [], prediction))
            answers["hits"].append(sum(map(eq, tags or [], prediction)))
            answers["words"].append(len(ids))
            answers["loss"].append(torch.nan if tags is None else float(loss.sum()))
            answers["items"].append(len(loss))
        return answers

    def metrics(self, answers: Answers) -> dict[str, float]:
        """Return the chosen metrics and mean cross-entropy, of the rows that have tags."""
        known = [index for index, tags in enumerate(answers["tags"]) if tags is not None]
        if not known:
            raise UserError("no row has tags to evaluate on", where="dataset.columns.tags")
        entities, hits, words, loss, items = (
            [answers[name][i] for i in known] for name in ("entities", "hits", "words", "loss", "items")
        )
        chosen = [name for name in self.metric_names if name != "loss"]
        return tagging_metrics(entities, hits, words, chosen) | {"loss": fsum(loss) / max(sum(items), 1)}


def word_of_token(words: list[str], offsets: list[tuple[int, int]]) -> list[int]:
    """Tell which word each token belongs to, `NO_WORD` for special tokens and blanks.

    Args:
        words: Joined by single blanks they are the text.
        offsets: First character of each token in the text, and the one after its last.
    """
    owners = [NO_WORD] * (sum(map(len, words)) + len(words))  # of each character
    start = 0
    for index, word in enumerate(words):
        owners[start : start + len(word)] = [index] * len(word)
        start += len(word) + 1
    return [owners[end - 1] if end > begin else NO_WORD for begin, end in offsets]


def _firsts(owners: list[int]) -> list[int]:
    """Keep the word of its first token only."""
    return [word if word != before else NO_WORD for before, word in pairwise([NO_WORD, *owners])]


def _by_word(places: list[int], predicted: list[str], words: int) -> list[str]:
    """Read off each word's tag at its first item; a word without one is outside of any entity.

    Args:
        places: Of each token, the word that it is an item of, or `NO_WORD`.
        predicted: Of the items, in order.
        words: How many there are.
    """
    items = [word for word in places if word != NO_WORD]
    tags = dict(zip(reversed(items), reversed(predicted), strict=True))
    return [tags.get(word, OUTSIDE) for word in range(words)]
