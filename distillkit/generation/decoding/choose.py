"""Choose the next token of each row, by a draw of the row's own."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import torch
from torch import Tensor

from distillkit.generation.backends.base import Sampling

FIRST = 64  # most likely tokens that are looked at first; usually they hold top_p


def draws(seed: tuple[int, ...], count: int) -> np.ndarray:
    """Return `count` numbers in [0, 1) that depend on nothing but the seed: float64."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed))).random(count)


def choose(logits: Tensor, numbers: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Choose a token for each row.

    Args:
        logits: `[rows, vocab]`.
        numbers: float64 `[rows]` in [0, 1): the draws. Not read at temperature 0.
        sampling: Temperature, top_k and top_p, applied in this order.

    Returns:
        int64 `[rows]`: the tokens; float32 `[rows]`: their log-probabilities by the logits as they are.
    """
    logits = logits.float()
    if sampling.temperature == 0:
        tokens = logits.argmax(dim=-1)
    else:
        tokens = _draw(logits / sampling.temperature, numbers.to(logits.device), sampling)
    return tokens, logits.gather(1, tokens.unsqueeze(1)).squeeze(1) - logits.logsumexp(dim=-1)


def penalise(logits: Tensor, said: Sequence[Collection[int]], penalty: float) -> Tensor:
    """Make tokens less likely that were there before   (Keskar et al. 2019, arXiv 1909.05858, section 4.1).

    Args:
        logits: `[rows, vocab]`.
        said: The tokens of each row.
        penalty: Above 1.
    """
    logits = logits.clone()
    for row, tokens in enumerate(said):
        chosen = torch.tensor(list(tokens), dtype=torch.int64, device=logits.device)
        own = logits[row, chosen]
        logits[row, chosen] = torch.where(own < 0, own * penalty, own / penalty)
    return logits


def _draw(logits: Tensor, numbers: Tensor, sampling: Sampling) -> Tensor:
    """Find the token at which the summed probabilities exceed the number's share of what is kept."""
    if sampling.top_p == 1 and sampling.top_k is None:
        return _at(logits.double().softmax(dim=-1).cumsum(dim=-1), numbers)
    summed, probabilities, ids = _most_likely(logits, sampling)
    if sampling.top_k is not None:
        probabilities = probabilities / summed[:, -1:]
        summed = summed / summed[:, -1:]
    before = summed - probabilities
    kept = (before < sampling.top_p).sum(dim=-1, keepdim=True)  # the first is always among them
    last = summed.gather(1, kept - 1)
    place = torch.searchsorted(summed, numbers.unsqueeze(1) * last, right=True)
    return ids.gather(1, place.minimum(kept - 1)).squeeze(1)


def _most_likely(logits: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor, Tensor]:
    """Return summed probabilities, probabilities and ids `[rows, k]` of as many tokens as are needed, largest first."""
    vocabulary = logits.shape[-1]
    normaliser = logits.double().logsumexp(dim=-1, keepdim=True)
    count = min(vocabulary, FIRST if sampling.top_k is None else sampling.top_k)
    while True:
        values, ids = logits.topk(count, dim=-1)
        probabilities = (values.double() - normaliser).exp()
        summed = probabilities.cumsum(dim=-1)
        enough = sampling.top_k is not None or count == vocabulary
        if enough or bool((summed[:, -1] >= sampling.top_p).all()):
            return summed, probabilities, ids
        count = min(vocabulary, 8 * count)


def _at(summed: Tensor, numbers: Tensor) -> Tensor:
    place = torch.searchsorted(summed, numbers.unsqueeze(1) * summed[:, -1:], right=True).squeeze(1)
    return place.clamp(max=summed.shape[-1] - 1)
