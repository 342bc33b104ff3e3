"""What stores answer: the decoded signal of some rows, of one store or of several that are mixed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from distillkit.cache.mixture import mix
from distillkit.cache.store import Store
from distillkit.losses.items import token_mask
from distillkit.signals import Batch, DenseLogits, Signal, SparseLogits, Wanted


class Answers:
    """Decode rows of stores, which are all about the same rows.

    Args:
        stores: One, or several whose outputs are mixed.
        weights: Of each, adding up to 1.
        wanted: What is decoded. Features come from the one store.
        kind: Of the outputs, as `Task.output_kind`.
    """

    def __init__(self, stores: Sequence[Store], weights: Sequence[float], wanted: Wanted, kind: str) -> None:
        self.stores = stores
        self.weights = weights
        self.wanted = wanted
        self.kind = kind

    def __call__(self, rows: np.ndarray, batch: Batch) -> Signal:
        """Return what the teachers say about the items of some rows, in order.

        Args:
            rows: Of the stores.
            batch: Collated of the same rows.
        """
        logits = None
        if self.wanted.logits:
            logits = mix([decoded(store, rows) for store in self.stores], self.weights, self.kind)
            if len(logits) != len(batch.labels):
                raise ValueError(f"{len(logits)} items in the store, {len(batch.labels)} in the batch")
        return Signal(logits, self._features(rows, batch))

    def _features(self, rows: np.ndarray, batch: Batch) -> dict[str, Tensor]:
        store = self.stores[0]
        kinds = [store.features[name] for name in sorted(self.wanted.features)]
        found = store.read(rows, [kind.column for kind in kinds]) if kinds else {}
        tokens = token_mask(batch)
        length = 1 if tokens is None else tokens.shape[1]
        return {kind.name: kind.decode(found[kind.column], length) for kind in kinds}


def decoded(store: Store, rows: np.ndarray) -> DenseLogits | SparseLogits:
    """Return the logits of the items of some rows of a store."""
    assert store.codec is not None
    return store.codec.decode(store.read(rows, store.codec_columns), store.facts["classes"])
