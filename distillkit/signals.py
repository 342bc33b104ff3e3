"""Signal: what one model says about one batch; Batch: what it was asked.

An *item* is one output that a loss may count: a row (classification) or a position whose next
token is known (language models). Items are selected once, by the task, so that everything
after it sees flat tensors `[items, …]` without padding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import ceil
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

IGNORE = -100  # label of an item without a hard label
ABSENT = -1e30  # logit of a class that an item does not have: its probability is 0, and finite, so that 0 · log 0 is 0


@dataclass(frozen=True)
class Batch:
    """One micro-batch, collated by a task.

    Attributes:
        inputs: Keyword arguments of the model, each `[batch, …]`.
        counted: bool `[batch]` or `[batch, length]`: which outputs are items. Of extracted answers: which positions are
            classes of the two items of a row, where the answer starts and where it ends.
        labels: int64 `[items]`: the hard label of each item, `IGNORE` where there is none; or float `[items, outputs]`:
            scores, or 1 and 0 for each class, NaN where there is none.
        taught: bool `[items]`: the items about which the teacher says something.
        recorded: float `[items, classes]`: teacher logits that came with the rows, if any.
        said: What a teacher store holds about these rows, if one is the teacher.
        segments: int64 `[batch, length]`: which text each position belongs to, −1 for padding, where several share a
            row (`distillkit.data.packing`); None where a row is one text.
        extras: Of each row, what answers are judged by and no model reads, such as texts and ids: column → values.
        real: False where the rows are somebody else's and only keep this process in step with the others.
    """

    inputs: dict[str, Tensor]
    counted: Tensor
    labels: Tensor
    taught: Tensor
    recorded: Tensor | None = None
    said: Signal | None = None
    segments: Tensor | None = None
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
            said=None if self.said is None else self.said.to(device),
            segments=None if self.segments is None else self.segments.to(device, non_blocking=True),
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

    def __getitem__(self, items: slice | Tensor) -> DenseLogits:
        """Select some items."""
        return DenseLogits(self.values[items])

    def to(self, device: torch.device) -> DenseLogits:
        """Copy to a device."""
        return DenseLogits(self.values.to(device, non_blocking=True))

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

    def __getitem__(self, items: slice | Tensor) -> HeadLogits:
        """Select some items."""
        return replace(self, hidden=self.hidden[items])

    def to(self, device: torch.device) -> HeadLogits:
        """Copy to a device."""
        bias = None if self.bias is None else self.bias.to(device)
        return replace(self, hidden=self.hidden.to(device), weight=self.weight.to(device), bias=bias)

    def rows(self, start: int, stop: int) -> Tensor:
        """Compute the logits `[stop - start, vocab]` of some items."""
        hidden = self.hidden[start:stop].to(self.weight.dtype)
        return self.finish(functional.linear(hidden, self.weight, self.bias))

    def finish(self, product: Tensor) -> Tensor:
        """Apply scale and soft cap to the head's product."""
        logits = product if self.scale == 1.0 else product * self.scale
        return logits if self.soft_cap is None else self.soft_cap * torch.tanh(logits / self.soft_cap)

    def unfinish(self, gradient: Tensor, logits: Tensor) -> Tensor:
        """Turn the gradient with respect to the finished logits into that with respect to the product, in place."""
        if self.soft_cap is not None:
            gradient -= gradient * (logits / self.soft_cap).square()
        return gradient if self.scale == 1.0 else gradient.mul_(self.scale)


@dataclass(frozen=True)
class SparseLogits:
    """What a model holds most likely: some classes of each item, and how much is left for all others.

    Of the others there may be random draws. They stand for all that is left, and give what is linear in the
    probabilities without bias; a loss that is not (`TaughtLoss.linear`), or at another temperature, leaves them aside.

    Attributes:
        ids: int64 `[items, k]`, each class once; −1 in a slot that holds none.
        log_probs: `[items, k]`: natural log-probabilities at `temperature`; anything in an empty slot.
        rest: `[items]`: log of the probability of all classes that are not listed; −inf where it is zero.
        classes: How many classes the model has.
        normaliser: `[items]`: log Σ exp(logit / temperature), which makes logits of log-probabilities; None if it was
            not kept.
        temperature: What the logits were divided by.
        drawn: int64 `[items, n]`: classes drawn from those that are not listed, each once; −1 in a slot that holds
            none. None if nothing was drawn.
        weights: `[items, n]`: logs of the probabilities that they stand for.
        sampled: The same items with draws listed, where they change what is listed beside them (a mixture of teachers,
            one of which drew what another lists); then `drawn` and `weights` are None.
    """

    ids: Tensor
    log_probs: Tensor
    rest: Tensor
    classes: int
    normaliser: Tensor | None = None
    temperature: float = 1.0
    drawn: Tensor | None = None
    weights: Tensor | None = None
    sampled: SparseLogits | None = None

    @staticmethod
    def best(logits: Tensor, k: int) -> SparseLogits:
        """List the k most likely classes of logits `[items, classes]`."""
        normaliser = logits.logsumexp(dim=-1)
        values, ids = logits.topk(k, dim=-1)
        rest = logits.scatter(-1, ids, -torch.inf).logsumexp(dim=-1) - normaliser
        return SparseLogits(ids, values - normaliser.unsqueeze(-1), rest, logits.shape[-1], normaliser)

    def __len__(self) -> int:
        return self.ids.shape[0]

    def __getitem__(self, items: slice | Tensor) -> SparseLogits:
        """Select some items."""
        return self._map(lambda tensor: tensor[items])

    def to(self, device: torch.device) -> SparseLogits:
        """Copy to a device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def _map(self, change: Callable[[Tensor], Tensor]) -> SparseLogits:
        names = ("ids", "log_probs", "rest", "normaliser", "drawn", "weights")
        changed: dict[str, Any] = {name: change(it) for name in names if (it := getattr(self, name)) is not None}
        sampled = None if self.sampled is None else self.sampled._map(change)
        return replace(self, **changed, sampled=sampled)

    @property
    def has_draws(self) -> bool:
        """Whether some classes were drawn at random."""
        return self.drawn is not None or self.sampled is not None

    def with_draws(self) -> SparseLogits:
        """List what was drawn as well, by what it stands for, with nothing left over."""
        if self.sampled is not None:
            return self.sampled
        assert self.drawn is not None
        assert self.weights is not None
        ids, log_probs = torch.cat([self.ids, self.drawn], -1), torch.cat([self.log_probs, self.weights], -1)
        nothing = torch.full_like(self.rest, -torch.inf)
        return replace(self, ids=ids, log_probs=log_probs, rest=nothing, drawn=None, weights=None)

    @property
    def each(self) -> Tensor:
        """Log-probability `[items]` of every class that is not listed, if they share what is left evenly."""
        others = self.classes - (self.ids >= 0).sum(dim=-1)
        return self.rest - others.to(self.rest.dtype).log()

    def rows(self, start: int, stop: int) -> Tensor:
        """Return logits `[stop - start, classes]` of some items, up to a constant; the classes not listed are alike.

        At temperature 1 they are log-probabilities. What was drawn is left aside.
        """
        some = self[start:stop]
        listed = some.ids >= 0
        spread = some.each.unsqueeze(-1).repeat(1, some.classes + 1)  # the last column takes what empty slots hold
        return self.temperature * spread.scatter(-1, some.ids.where(listed, some.classes), some.log_probs)[:, :-1]


Logits = DenseLogits | HeadLogits | SparseLogits


@dataclass(frozen=True)
class Signal:
    """What one model says about one batch.

    Attributes:
        logits: Over the items of the batch, or None where no loss asked for them.
        features: Captured tensors by name, such as "layers.3.hidden".
    """

    logits: Logits | None = None
    features: Mapping[str, Tensor] = field(default_factory=dict)

    def to(self, device: torch.device) -> Signal:
        """Copy to a device."""
        features = {name: tensor.to(device, non_blocking=True) for name, tensor in self.features.items()}
        return Signal(None if self.logits is None else self.logits.to(device), features)


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
    """Yield `(start, stop)` over the items, in even chunks whose logits do not exceed `budget` elements."""
    most = max(1, budget // max(classes, 1))
    size = max(1, ceil(items / max(1, ceil(items / most))))
    for start in range(0, items, size):
        yield start, min(start + size, items)
