"""Signal: what one model says about one batch; Batch: what it was asked.

An *item* is one output that a loss may count: a row (classification) or a position whose next
token is known (language models). Items are selected once, by the task, so that everything
after it sees flat tensors `[items, …]` without padding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

IGNORE = -100  # label of an item without a hard label


@dataclass(frozen=True)
class Batch:
    """One micro-batch, collated by a task.

    Attributes:
        inputs: Keyword arguments of the model, each `[batch, …]`.
        counted: bool `[batch]` or `[batch, length]`: which outputs are items.
        labels: int64 `[items]`: the hard label of each item, `IGNORE` where there is none.
        taught: bool `[items]`: the items about which the teacher says something.
        recorded: float `[items, classes]`: teacher logits that came with the rows, if any.
        extras: Of each row, what answers are judged by and no model reads, such as texts and ids: column → values.
        real: False where the rows are somebody else's and only keep this process in step with the others.
    """

    inputs: dict[str, Tensor]
    counted: Tensor
    labels: Tensor
    taught: Tensor
    recorded: Tensor | None = None
    extras: Mapping[str, list[Any]] = field(default_factory=dict)
    real: bool = True

    def to(self, device: torch.device) -> Batch:
        """Copy to a device."""
        return replace(
            self,
            inputs={name: tensor.to(device, non_blocking=True) for name, tensor in self.inputs.items()},
            counted=self.counted.to(device, non_blocking=True),
            labels=self.labels.to(device, non_blocking=True),
            taught=self.taught.to(device, non_blocking=True),
            recorded=None if self.recorded is None else self.recorded.to(device, non_blocking=True),
        )


@dataclass(frozen=True)
class DenseLogits:
    """Logits `[items, classes]`, computed."""

    values: Tensor

    def __len__(self) -> int:
        return self.values.shape[0]

    @property
    def classes(self) -> int:
        """Number of classes."""
        return self.values.shape[1]

    def rows(self, start: int, stop: int) -> Tensor:
        """Return the logits `[stop - start, classes]` of some items."""
        return self.values[start:stop]


@dataclass(frozen=True)
class HeadLogits:
    """Logits not yet multiplied out: `soft_cap(scale · (hidden Wᵀ + bias))`.

    Attributes:
        hidden: `[items, d]`, the input of the output head.
        weight: `[vocab, d]`.
        bias: `[vocab]` or None.
        scale: Factor on the product (Cohere, Granite).
        soft_cap: c in `c · tanh(logits / c)` (Gemma 2), or None.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    soft_cap: float | None = None

    def __len__(self) -> int:
        return self.hidden.shape[0]

    @property
    def classes(self) -> int:
        """Size of the vocabulary, padding columns included."""
        return self.weight.shape[0]

    def rows(self, start: int, stop: int) -> Tensor:
        """Compute the logits `[stop - start, vocab]` of some items."""
        hidden = self.hidden[start:stop].to(self.weight.dtype)
        return self.finish(functional.linear(hidden, self.weight, self.bias))

    def finish(self, product: Tensor) -> Tensor:
        """Apply scale and soft cap to the head's product."""
        logits = product if self.scale == 1.0 else product * self.scale
        return logits if self.soft_cap is None else self.soft_cap * torch.tanh(logits / self.soft_cap)


Logits = DenseLogits | HeadLogits


@dataclass(frozen=True)
class Signal:
    """What one model says about one batch.

    Attributes:
        logits: Over the items of the batch, or None where no loss asked for them.
        features: Captured tensors by name, such as "layers.3.hidden".
    """

    logits: Logits | None = None
    features: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Wanted:
    """What a model is asked for; nothing else is computed.

    Attributes:
        logits: Whether logits are needed.
        features: Names of `distillkit.features`.
    """

    logits: bool = True
    features: frozenset[str] = frozenset()


LOGITS = Wanted()


class Model(Protocol):
    """Anything that answers a batch with a signal: a live model, an ONNX session, recorded outputs."""

    def __call__(self, batch: Batch) -> Signal:
        """Answer a batch."""
        ...


def chunks(items: int, classes: int, budget: int = 1 << 24) -> Iterator[tuple[int, int]]:
    """Yield `(start, stop)` over the items so that no chunk's logits exceed `budget` elements."""
    size = max(1, min(items, budget // max(classes, 1)))
    for start in range(0, items, size):
        yield start, min(start + size, items)
