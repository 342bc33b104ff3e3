"""Sparse formats: the likeliest classes of an item exactly, what is left as one number, and random draws from that.

One layout serves all. Of each item:

    count       how many classes are listed, the likeliest first
    draws       how many classes were drawn from the others (if the format draws)
    rest        log of the probability r of all classes that are not listed; −inf if there are none
    span, gaps  how far the second, third, … listed class lies below the first, in (2^bits − 1)ths of `span` / 8 nats
    ids         the listed classes
    drawn       those that were drawn, in ascending order, possibly repeated: each stands for r / draws
    normaliser  log Σ exp(logit / temperature), if asked for

The listed probabilities are exp(−gap), scaled to sum to 1 − r: whatever rounding did, all together is 1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from distillkit.cache.bits import unpack
from distillkit.cache.codec import Columns, Encoded, Numbers
from distillkit.cache.layout import merge, spread, sums, table
from distillkit.cache.levels import from_half, gaps_of, quantise, span_of, to_half
from distillkit.cache.select import choose, uniforms
from distillkit.errors import UserError
from distillkit.signals import SparseLogits

MOST = 255  # classes listed, and drawn: their counts have 8 bits

PACKING = "numbers follow each other from the lowest bit of the first byte up; a row's value ends with a whole byte"
COLUMNS = {
    "count": "uint8: listed classes of each item",
    "draws": "uint8: draws of each item from the other classes",
    "rest": "float16 of each item: log of the probability of the classes that are not listed",
    "span": "uint8 of each item: span of its gaps in 1/8 nats",
    "gaps": "{bits} bits each, count − 1 of each item (none if count is 0): how far the log-probability of the second, "
    "third, ... listed class lies below that of the first, times 8 · (2^{bits} − 1) / span",
    "ids": "{width} bits each, count of each item: the listed classes, the likeliest first",
    "drawn": "{width} bits each, draws of each item: the drawn classes, ascending; each stands for exp(rest) / draws",
    "normaliser": "float32 of each item: log of the sum of exp(logit / temperature)",
}


class Sparse:
    """What the sparse formats share.

    Args:
        k: Most classes to list.
        mass: List no more than hold this probability.
        least: List none with less than this, but the likeliest.
        draws: From a rest of probability 1; one of probability r gets ⌈r · draws⌉.
        bits: Of a gap between log-probabilities.
        temperature: The logits are divided by it first: losses at this temperature get all that is kept.
        normaliser: Keep it, in 4 bytes more, for losses on logits that are not centred.
    """

    name = ""

    def __init__(
        self, k: int, mass: float, least: float, draws: int, bits: int, temperature: float, normaliser: bool
    ) -> None:
        for key, value in (("k", k), ("draws", draws)):
            if not 0 <= value <= MOST:
                raise UserError(f"must be 1 … {MOST}, got {value}", where=f"generate.codec.{key}")
        if not 0 < mass <= 1:
            raise UserError(f"must be in (0, 1], got {mass}", where="generate.codec.mass")
        if not 0 <= least < 1:
            raise UserError(f"must be in [0, 1), got {least}", where="generate.codec.least")
        if not 1 <= bits <= 16:
            raise UserError(f"must be 1 … 16, got {bits}", where="generate.codec.bits")
        if not temperature > 0:
            raise UserError(f"must be above 0, got {temperature}", where="generate.codec.temperature")
        self.k, self.mass, self.least, self.draws, self.bits = k, mass, least, draws, bits
        self.temperature, self.normaliser = temperature, normaliser

    @property
    def columns(self) -> list[str]:
        """Names of the columns."""
        listed = ["count", "rest", "span", "gaps", "ids"] if self.k else []
        return listed + ["draws", "drawn"] * bool(self.draws) + ["normaliser"] * self.normaliser

    def describe(self, classes: int) -> dict[str, Any]:
        """Return what a store says about its format."""
        words = {"bits": self.bits, "width": _width(classes)}
        columns = {name: COLUMNS[name].format(**words) for name in self.columns}
        facts = {"name": self.name, "arguments": self.arguments(), "classes": classes}
        return facts | {"columns": columns, "packing": PACKING}

    def arguments(self) -> dict[str, Any]:
        """Return what makes this codec again."""
        raise NotImplementedError

    @torch.no_grad()
    def encode(self, logits: Tensor, seeds: Tensor) -> Encoded:
        """Encode logits `[items, classes]`, with seeds `[items]` of the draws."""
        if not len(logits):
            some = self.encode(logits.new_zeros(1, logits.shape[1]), torch.zeros(1, dtype=torch.int64))
            return Encoded({name: Numbers(it.values[:0], it.bits, it.counts[:0]) for name, it in some.columns.items()})
        scaled = logits.float() if self.temperature == 1 else logits.float() / self.temperature
        chosen = choose(scaled, self.k, self.mass, self.least, self.draws, uniforms(seeds))
        count, draws = chosen.count.cpu().numpy(), chosen.draws.cpu().numpy()
        width, one = _width(logits.shape[1]), np.ones(len(count), dtype=np.int64)
        columns: dict[str, Numbers] = {}
        if self.k:
            listed = np.arange(chosen.ids.shape[1]) < count[:, None]
            best = chosen.log_probs.cpu().numpy()
            gaps = np.where(listed, best[:, :1] - best, 0)[:, 1:]
            span = span_of(gaps)
            columns |= {
                "count": Numbers(count.astype(np.uint32), 8, one),
                "rest": Numbers(to_half(chosen.rest.cpu().numpy()), 16, one),
                "span": Numbers(span, 8, one),
                "gaps": Numbers(quantise(gaps, span, self.bits)[listed[:, 1:]], self.bits, (count - 1).clip(0)),
                "ids": Numbers(chosen.ids.cpu().numpy()[listed], width, count),
            }
        if self.draws:
            taken = np.arange(chosen.drawn.shape[1]) < draws[:, None]
            columns["draws"] = Numbers(draws.astype(np.uint32), 8, one)
            columns["drawn"] = Numbers(chosen.drawn.cpu().numpy()[taken], width, draws)
        if self.normaliser:
            columns["normaliser"] = Numbers(chosen.normaliser.cpu().numpy().view(np.uint32), 32, one)
        return Encoded(columns)

    def decode(self, columns: Columns, classes: int) -> SparseLogits:
        """Return the items of some rows in order, on the CPU.

        Raises:
            ValueError: If the columns do not fit each other.
        """
        lengths = np.array([len(row) for row in columns["count" if self.k else "draws"]], dtype=np.int64)
        items, width = int(lengths.sum()), _width(classes)
        ids, log_probs = np.full((items, 0), -1), np.zeros((items, 0), dtype=np.float32)
        rest = np.zeros(items, dtype=np.float32)
        if self.k:
            count = unpack(columns["count"], 8, lengths).astype(np.int64)
            rest = from_half(unpack(columns["rest"], 16, lengths))
            ids = table(unpack(columns["ids"], width, sums(count, lengths)), count, -1)
            below = (count - 1).clip(0)
            codes = unpack(columns["gaps"], self.bits, sums(below, lengths))
            span = np.repeat(unpack(columns["span"], 8, lengths), below)
            log_probs = spread(table(gaps_of(codes, span, self.bits), below, np.inf), count, rest)
        drawn = weights = normaliser = None
        if self.draws:
            draws = unpack(columns["draws"], 8, lengths).astype(np.int64)
            drawn = table(unpack(columns["drawn"], width, sums(draws, lengths)), draws, -1)
            drawn, times = merge(drawn)
            weights = torch.from_numpy(np.log(times / draws.clip(1)[:, None]) + rest[:, None]).float()
        if self.normaliser:
            normaliser = torch.from_numpy(unpack(columns["normaliser"], 32, lengths).view(np.float32).copy())
        return SparseLogits(
            torch.from_numpy(ids),
            torch.from_numpy(log_probs),
            torch.from_numpy(rest),
            classes,
            normaliser,
            self.temperature,
            None if drawn is None else torch.from_numpy(drawn),
            weights,
        )


class TopK(Sparse):
    """The k likeliest classes, or the fewest that hold `mass`, and the probability of all others.

    What a student learns of these others is how likely they are together, and nothing of which: that bias does not
    average out over items.

    Args:
        k: Most classes to list.
        mass: List no more than hold this probability.
        bits: Of a log-probability.
        temperature: Of the probabilities that are kept.
        normaliser: Keep what makes logits of log-probabilities.
    """

    name = "top_k"

    def __init__(
        self, k: int = 32, mass: float = 0.99, bits: int = 8, temperature: float = 1.0, normaliser: bool = False
    ) -> None:
        super().__init__(_some(k, "k"), mass, 0.0, 0, bits, temperature, normaliser)

    def arguments(self) -> dict[str, Any]:
        """Return what makes this codec again."""
        return {name: getattr(self, name) for name in ("k", "mass", "bits", "temperature", "normaliser")}


class Sampled(Sparse):
    """Classes drawn at random, each for the same share: no class is favoured (Anshumann et al. 2025, arXiv 2503.16870).

    It has the gradient of forward KL and soft cross-entropy on average over draws; other losses refuse it.

    Args:
        draws: Of each item.
        temperature: Of the probabilities that are drawn from.
    """

    name = "sampled"

    def __init__(self, draws: int = 24, temperature: float = 1.0) -> None:
        super().__init__(0, 1.0, 0.0, _some(draws, "draws"), 8, temperature, False)

    def arguments(self) -> dict[str, Any]:
        """Return what makes this codec again."""
        return {"draws": self.draws, "temperature": self.temperature}


class TopKSampled(Sparse):
    """The likeliest classes, as `TopK` keeps them, and classes drawn at random from all others.

    Losses that are linear in the teacher's probabilities get their whole gradient on average over draws; all others get
    what `TopK` gives with the same classes. A class that is likelier than what a draw stands for, 1 / draws, costs less
    listed than drawn, and has no noise then; any other costs more than it saves.

    Args:
        k: Most classes to list.
        mass: List no more than hold this probability.
        least: List none with less than this, but the likeliest.
        draws: From a rest of probability 1; one of probability r gets ⌈r · draws⌉.
        bits: Of a log-probability.
        temperature: Of the probabilities that are kept and drawn from.
        normaliser: Keep what makes logits of log-probabilities.
    """

    name = "top_k_sampled"

    def __init__(
        self,
        k: int = 64,
        mass: float = 1.0,
        least: float = 0.028,
        draws: int = 36,
        bits: int = 8,
        temperature: float = 1.0,
        normaliser: bool = False,
    ) -> None:
        super().__init__(_some(k, "k"), mass, least, _some(draws, "draws"), bits, temperature, normaliser)

    def arguments(self) -> dict[str, Any]:
        """Return what makes this codec again."""
        return {
            name: getattr(self, name) for name in ("k", "mass", "least", "draws", "bits", "temperature", "normaliser")
        }


def _some(value: int, key: str) -> int:
    if value < 1:
        raise UserError(f"must be 1 … {MOST}, got {value}", where=f"generate.codec.{key}")
    return value


def _width(classes: int) -> int:
    """Return how many bits the id of a class needs."""
    return max(1, (classes - 1).bit_length())
