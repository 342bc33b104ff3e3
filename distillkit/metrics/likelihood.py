"""How likely a language model finds a text: nats a token, perplexity, next-token accuracy, bits a byte."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, fsum, log, nan


def likelihood_metrics(losses: Sequence[float], hits: Sequence[int], items: Sequence[int]) -> dict[str, float]:
    """Return loss, perplexity and accuracy over all tokens alike, whatever row they stand in.

    Args:
        losses: Summed negative log-likelihood of each row, in nats.
        hits: Tokens of each row that were the most likely ones.
        items: Predicted tokens of each row.
    """
    count = max(sum(items), 1)
    loss = fsum(losses) / count
    return {"loss": loss, "perplexity": exp(min(loss, 700.0)), "accuracy": sum(hits) / count}


def bits_per_byte(losses: Sequence[float], sizes: Sequence[int]) -> float:
    """Return nats / (ln 2 · bytes): comparable between models with different tokenizers, as nats a token are not.

    The nats include those of end-of-text tokens, which are no bytes.

    Args:
        losses: Summed negative log-likelihood of each row, in nats.
        sizes: UTF-8 bytes of the text that the predicted tokens of each row are.
    """
    total = sum(sizes)
    return fsum(losses) / (log(2) * total) if total else nan
