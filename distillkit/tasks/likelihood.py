"""Answers of tasks over a vocabulary: what each row's counted tokens cost, and which tokens were expected instead."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from distillkit.signals import Batch, Logits, chunks
from distillkit.tasks.base import Answers


def likelihood_answers(logits: Logits, batch: Batch) -> Answers:
    """Return "loss" (summed nats), "hits", "items" and "prediction" (token ids) of each row, chunk by chunk.

    Args:
        logits: Over the items of the batch.
        batch: Its `counted` is `[batch, length]`.
    """
    losses, predicted = [], []
    for start, stop in chunks(len(logits), logits.classes):
        rows, labels = logits.rows(start, stop).float(), batch.labels[start:stop]
        predicted.append(rows.argmax(dim=-1))
        losses.append((rows.logsumexp(dim=-1) - rows.gather(1, labels.unsqueeze(1)).squeeze(1)).double())
    items = batch.counted.sum(dim=1).tolist()
    loss, prediction = (_rows(parts, items) for parts in (losses, predicted))
    hits = [
        int((tokens == labels).sum())
        for tokens, labels in zip(prediction, batch.labels.cpu().split(items), strict=True)
    ]
    return {
        "loss": [float(row.sum()) for row in loss],
        "hits": hits,
        "items": items,
        "prediction": [row.to(torch.int32).numpy() for row in prediction],
    }


def _rows(parts: list[Tensor], items: list[int]) -> list[Tensor]:
    """Split what was computed item by item into rows."""
    whole = torch.cat(parts).cpu() if parts else torch.zeros(0)
    return list(whole.split(items))


def read_bytes(encoded: Any, index: int, start: int, stop: int, text: str, tokenizer: Any) -> int:
    """Return how many bytes of a text, in UTF-8, its tokens `start` … `stop` − 1 stand for.

    A character of several tokens belongs to the one that begins it; what the tokenizer leaves out at the end of the
    text, to the last one.

    Args:
        encoded: What a tokenizer made of texts.
        index: Which of them.
        start: Of the tokens.
        stop: Likewise; those beyond the last, such as an end-of-text token that was added, stand for nothing.
        text: That text.
        tokenizer: The same.
    """
    if not tokenizer.is_fast:
        return len(tokenizer.decode(encoded["input_ids"][index][start:stop], skip_special_tokens=True).encode())
    left, right = (_characters(encoded, index, tokens, text) for tokens in (start, stop))
    return len(text[left:right].encode())


def _characters(encoded: Any, index: int, tokens: int, text: str) -> int:
    """Return how many characters of a text its first tokens reach."""
    if tokens >= len(encoded["input_ids"][index]):
        return len(text)
    for token in range(tokens - 1, -1, -1):
        span = encoded.token_to_chars(index, token)
        if span is not None:  # a special token
            return span.end
    return 0
