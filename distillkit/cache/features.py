"""Features of a store: what was captured inside the teacher, as bytes for each row.

A row's value holds the vectors of its tokens one after the other (of heads, token by token), or one vector if they
were pooled: all numbers little-endian, as float16, or as int8 followed by one float32 for each vector, which the
vector's numbers are to be multiplied by.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from distillkit.errors import UserError

Kind = Literal["float16", "int8"]
PREFIX = "feature:"  # of a column's name; then comes the feature's
LARGEST = 127  # of int8


@dataclass(frozen=True)
class FeatureFormat:
    """How one feature is stored.

    Attributes:
        name: As in `distillkit.features`.
        heads: Of queries, keys and values; None for hidden states.
        width: Of a vector.
        tokens: Whether there is a vector for each token (and head), or one for the row.
        kind: Of the numbers.
        pooling: How the tokens' vectors became one; None if the model gave one, or each token has its own.
    """

    name: str
    heads: int | None
    width: int
    tokens: bool
    kind: Kind
    pooling: str | None = None

    @property
    def column(self) -> str:
        """The name of its column."""
        return PREFIX + self.name

    def describe(self) -> dict[str, Any]:
        """Return what a store says about it."""
        return {"column": self.column, **asdict(self)}

    @staticmethod
    def of(name: str, feature: Tensor, mask: Tensor | None, kind: Kind, pooling: str | None = None) -> FeatureFormat:
        """Tell the format by what a model shows of a batch.

        Args:
            name: Of the feature.
            feature: `[batch, width]`, `[batch, length, width]` or `[batch, heads, length, width]`.
            mask: bool `[batch, length]`: which positions hold tokens; None if all do.
            kind: Of the numbers.
            pooling: How it was pooled, if it was.
        """
        length = feature.shape[-2] if feature.ndim > 2 else None
        if feature.ndim not in (2, 3, 4) or (mask is not None and length not in (None, mask.shape[1])):
            raise UserError(
                f"{name} gives {list(feature.shape)}: no vector a row or a token", where="generate.features"
            )
        heads = feature.shape[1] if feature.ndim == 4 else None
        return FeatureFormat(name, heads, feature.shape[-1], feature.ndim > 2, kind, pooling)

    def encode(self, feature: Tensor, mask: Tensor | None) -> list[bytes]:
        """Return the bytes of each row.

        Args:
            feature: As `of`.
            mask: As `of`.
        """
        by_token = feature.transpose(1, 2) if feature.ndim == 4 else feature  # [batch, length, heads, width]
        values = by_token.float().cpu()
        places = [slice(None)] * len(values) if mask is None or not self.tokens else list(mask.cpu())
        return [self._encode(row[place].numpy()) for row, place in zip(values, places, strict=True)]

    def decode(self, rows: Sequence[bytes], length: int) -> Tensor:
        """Return the feature of some rows in float32, as a batch of this length shows it.

        What was pooled here is the same at every token, so that a loss that pools likewise gets it back; rows of
        tokens are padded on the right with zeros.
        """
        found = [torch.from_numpy(self._decode(row)) for row in rows]
        if self.pooling is not None:
            return torch.stack(found).expand(-1, length, -1)
        if not self.tokens:
            return torch.cat(found)
        padded = torch.nn.utils.rnn.pad_sequence(found, batch_first=True)
        if self.heads is None:
            return padded
        return padded.unflatten(2, (self.heads, self.width)).transpose(1, 2)

    def _encode(self, values: np.ndarray) -> bytes:
        if self.kind == "float16":
            limit = np.finfo(np.float16).max
            return values.clip(-limit, limit).astype("<f2").tobytes()
        vectors = values.reshape(-1, self.width)
        scales = np.abs(vectors).max(axis=1).astype("<f4") / LARGEST
        scaled = vectors / np.where(scales > 0, scales, 1)[:, None]
        return np.rint(scaled).astype(np.int8).tobytes() + scales.astype("<f4").tobytes()

    def _decode(self, data: bytes) -> np.ndarray:
        """Return float32 `[tokens, heads · width]`, of a pooled row `[1, width]`."""
        across = self.width * (self.heads or 1)
        if self.kind == "float16":
            return np.frombuffer(data, "<f2").astype(np.float32).reshape(-1, across)
        vectors = len(data) // (self.width + 4)
        scales = np.frombuffer(data, "<f4", offset=vectors * self.width)
        numbers = np.frombuffer(data, np.int8, vectors * self.width).reshape(-1, self.width)
        return (numbers * scales[:, None]).astype(np.float32).reshape(-1, across)


def format_of(description: dict[str, Any]) -> FeatureFormat:
    """Make the format of what its `describe` said."""
    return FeatureFormat(**{name: value for name, value in description.items() if name != "column"})
