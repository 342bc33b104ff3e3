"""How likely a language model finds a text: nats a token, perplexity, next-token accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, fsum


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
