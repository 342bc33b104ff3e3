"""Log-probabilities in a few bits: how far each lies below the first, in even steps over the span of its item."""

from __future__ import annotations

import numpy as np

SPAN = 8  # the span is counted in 1/SPAN nats
WIDEST = (1 << 8) - 1  # of these: 31.9 nats


def span_of(gaps: np.ndarray) -> np.ndarray:
    """Return the code `[items]` of the span that holds the gaps `[items, k]` of each item, 1 … 255."""
    return np.clip(np.ceil(gaps.max(axis=1, initial=0.0) * SPAN), 1, WIDEST).astype(np.uint32)


def quantise(gaps: np.ndarray, span: np.ndarray, bits: int) -> np.ndarray:
    """Return the codes `[items, k]` of gaps in nats; a gap beyond the widest span becomes that."""
    top = (1 << bits) - 1
    return np.clip(np.rint(gaps * (SPAN * top / span[:, None])), 0, top).astype(np.uint32)


def gaps_of(codes: np.ndarray, span: np.ndarray, bits: int) -> np.ndarray:
    """Return the gaps in nats, float32, of codes and the span of the item of each."""
    return codes.astype(np.float32) * (span.astype(np.float32) / np.float32(SPAN * ((1 << bits) - 1)))


def to_half(values: np.ndarray) -> np.ndarray:
    """Return the bits of float16."""
    return values.astype("<f2").view("<u2")


def from_half(codes: np.ndarray) -> np.ndarray:
    """Return the float32 of the bits of float16."""
    return codes.astype("<u2").view("<f2").astype(np.float32)
