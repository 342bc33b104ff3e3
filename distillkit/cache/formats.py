"""The formats of a teacher store by name, and how a store's description becomes the codec that wrote it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from distillkit.cache.codec import Codec, Encoded
from distillkit.cache.dense import Dense
from distillkit.cache.sparse import Sampled, TopK, TopKSampled
from distillkit.signals import Logits, chunks

CHUNK = 1 << 22  # logits
FORMATS: dict[str, type] = {kind.name: kind for kind in (Dense, TopK, Sampled, TopKSampled)}


def usual_codec(whole: bool) -> Codec:
    """Return what a store keeps unless it is told otherwise.

    Args:
        whole: Whether the classes are few, and not a vocabulary.
    """
    return Dense() if whole else TopKSampled()


def codec_of(description: Mapping[str, Any]) -> Codec:
    """Make the codec of what its `describe` said."""
    return FORMATS[description["name"]](**description["arguments"])


@torch.no_grad()
def encode(codec: Codec, logits: Logits, seeds: Tensor) -> Encoded:
    """Encode logits of any kind, a chunk at a time, so that `[items, classes]` never exists as a whole.

    Args:
        codec: The format.
        logits: About some items.
        seeds: int64 `[items]`.
    """
    ends = list(chunks(len(logits), logits.classes, CHUNK)) or [(0, 0)]
    return Encoded.join([codec.encode(logits.rows(start, stop), seeds[start:stop]) for start, stop in ends])
