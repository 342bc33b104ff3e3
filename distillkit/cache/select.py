"""What is kept of a distribution over many classes: the likeliest ones, and random draws among the others.

Classes are looked at in groups. The k likeliest lie in the k groups with the highest maxima, and a draw finds its group
first: so only the passes that take the softmax see every class.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

GROUP = 64  # classes
BLOCK = 1 << 18  # logits, for each thread


@dataclass(frozen=True)
class Chosen:
    """What was chosen of some items.

    Attributes:
        ids: int64 `[items, k]`: the likeliest classes, the likeliest first.
        log_probs: float32 `[items, k]`: their natural log-probabilities.
        count: int64 `[items]`: how many of them are kept.
        rest: float32 `[items]`: log-probability of all classes but those; −inf if there are none.
        drawn: int64 `[items, draws]`: classes drawn from the rest, in ascending order, possibly repeated.
        draws: int64 `[items]`: how many of them are kept.
        normaliser: float32 `[items]`: log Σ exp(logit / temperature).
    """

    ids: Tensor
    log_probs: Tensor
    count: Tensor
    rest: Tensor
    drawn: Tensor
    draws: Tensor
    normaliser: Tensor


def choose(logits: Tensor, k: int, mass: float, least: float, draws: int, uniforms: Tensor) -> Chosen:
    """Choose classes of each item.

    The likeliest classes are kept until they hold `mass` or the next has less than `least`, at most k. A rest of
    probability r gets n = ⌈r · draws⌉ draws, so that each stands for about the same probability r/n ≤ 1/draws whatever
    the item is: for a given number of draws altogether that gives the least variance. They are systematic: with the
    classes laid side by side on a line, each as long as its probability, the draws are n points at equal distances, the
    first at random. The expected number of draws of a class is n · p/r, as for independent draws, and no count is
    further than 1 from it.

    Args:
        logits: float32 `[items, classes]`, over the temperature.
        k: Most classes to keep; 0 for none.
        mass: In (0, 1].
        least: Probability; the likeliest class is kept whatever it has.
        draws: Of a rest of probability 1; 0 for none.
        uniforms: float64 `[items]` in [0, 1): where the first draw falls.
    """
    k = min(k, logits.shape[1])
    logits = logits.contiguous()
    if logits.shape[1] < GROUP:
        logits = functional.pad(logits, (0, GROUP - logits.shape[1]), value=-torch.inf)
    peaks, sums = _soften(logits)
    top, total = peaks.amax(dim=1, keepdim=True), sums.sum(dim=1, keepdim=True)
    normaliser = top + total.log()
    lowest = torch.minimum(normaliser + math.log(least), top) if least else torch.full_like(top, -torch.inf)
    groups = peaks.topk(_most(peaks >= lowest, k), dim=1).indices
    starts, values = _take(logits, groups)
    best, places = values.flatten(1).topk(_most(values.flatten(1) >= lowest, k), dim=1)
    k, log_probs = best.shape[1], best - normaliser
    wanted = (log_probs.exp().cumsum(dim=1)[:, :-1] < mass) & (best[:, 1:] >= lowest)
    count = wanted.sum(dim=1) + min(k, 1)
    # The sums of these groups anew, without what is kept: subtracting it would lose digits.
    kept = torch.arange(k, device=count.device) < count.unsqueeze(1)
    powers = values.sub_(top.unsqueeze(-1)).exp_()
    powers.flatten(1).scatter_(1, places, best.sub_(top).exp_().masked_fill_(kept, 0.0))
    sums = sums.scatter(1, groups, powers.sum(dim=-1))
    share = sums.sum(dim=1, keepdim=True) / total
    number = (draws * share).ceil_().long().clamp_(max=draws)
    points = _points(sums, number, int(number.max()), uniforms)
    drawn = _find(logits, top, sums, groups, powers, points)
    return Chosen(
        ids=starts.gather(1, places // GROUP) + places % GROUP,
        log_probs=log_probs,
        count=count,
        rest=share.log().squeeze(1),
        drawn=drawn,
        draws=number.squeeze(1),
        normaliser=normaliser.squeeze(1),
    )


def uniforms(seeds: Tensor) -> Tensor:
    """Turn int64 seeds into float64 in [0, 1) that look independent, by SplitMix64 (Steele, Lea, Flood 2014)."""
    state = seeds.cpu().numpy().astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        state = (state ^ (state >> np.uint64(shift))) * np.uint64(factor)
    return torch.from_numpy(((state ^ (state >> np.uint64(31))) >> np.uint64(11)) * 2.0**-53)


def _most(wanted: Tensor, k: int) -> int:
    """Return the most that an item wants, at most k."""
    return min(k, int(wanted.sum(dim=1).max()))


def _soften(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return by group `[items, groups]` the largest logit, and the sum of exp(logit less the item's largest).

    On a CPU a few items at a time, which stay in the processor's cache from one operation to the next.
    """
    items, classes = logits.shape
    block = BLOCK * torch.get_num_threads() if logits.device.type == "cpu" else logits.numel()
    size = max(1, min(items, block // classes))
    memory = logits.new_empty(size, classes)
    peaks, sums = (logits.new_empty(items, -(-classes // GROUP)) for _ in range(2))
    for start in range(0, items, size):
        ours = slice(start, start + size)
        _by_group(logits[ours], torch.amax, peaks[ours])
        powers = torch.sub(logits[ours], peaks[ours].amax(dim=1, keepdim=True), out=memory[: len(peaks[ours])]).exp_()
        _by_group(powers, torch.sum, sums[ours])
    return peaks, sums


def _by_group(values: Tensor, reduce: Callable[..., Tensor], out: Tensor) -> None:
    """Reduce `[items, classes]` to `[items, groups]`; the last group may be smaller."""
    groups = values.shape[1] // GROUP
    reduce(values[:, : groups * GROUP].unflatten(1, (-1, GROUP)), dim=-1, out=out[:, :groups])
    if groups < out.shape[1]:
        out[:, groups] = reduce(values[:, groups * GROUP :], dim=-1)


def _take(logits: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """Return where windows of `GROUP` classes around groups `[items, n]` start, and their logits `[items, n, GROUP]`.

    A last group that is smaller shares its window with classes of the group before; these are −inf.
    """
    items, classes = logits.shape
    begins = groups * GROUP
    starts = begins.clamp(max=classes - GROUP)
    rows = starts + classes * torch.arange(items, device=groups.device).unsqueeze(1)
    values = logits.view(-1).unfold(0, GROUP, 1)[rows]
    if classes % GROUP:
        before = torch.arange(GROUP, device=groups.device) < (begins - starts).unsqueeze(-1)
        values.masked_fill_(before, -torch.inf)
    return starts, values


def _points(sums: Tensor, number: Tensor, draws: int, uniforms: Tensor) -> Tensor:
    """Return where draws fall `[items, draws]`, float64, on a line of length Σ sums."""
    steps = torch.arange(draws, device=sums.device)
    return (uniforms.to(sums.device).unsqueeze(1) + steps) / number.clamp(min=1) * sums.double().sum(1, keepdim=True)


def _find(logits: Tensor, top: Tensor, sums: Tensor, changed: Tensor, powers: Tensor, points: Tensor) -> Tensor:
    """Return the classes `[items, draws]` on which points fall.

    Args:
        logits: `[items, classes]`.
        top: `[items, 1]`, the largest.
        sums: `[items, groups]`, of the exponentials of each group.
        changed: Groups `[items, m]` whose classes do not all take part.
        powers: The exponentials of these `[items, m, GROUP]`, zero where they do not.
        points: `[items, draws]`, ascending.
    """
    exact = sums.double()
    ends = exact.cumsum(dim=1)
    groups = torch.searchsorted(ends, points, right=True).clamp_(max=sums.shape[1] - 1)
    starts, inside = _take(logits, groups)
    inside = inside.sub_(top.unsqueeze(-1)).exp_()
    if changed.shape[1]:
        where = torch.full_like(sums, -1, dtype=torch.long)
        where = where.scatter_(1, changed, torch.arange(changed.shape[1], device=sums.device).expand_as(changed))
        where = where.gather(1, groups)
        items, places = (where >= 0).nonzero(as_tuple=True)
        inside[items, places] = powers[items, where[items, places]]
    within = (points - (ends - exact).gather(1, groups)).float().unsqueeze(-1)
    place = (inside.cumsum(dim=-1) <= within).sum(dim=-1, keepdim=True)
    # Rounding may put a point beyond the group's last class, or onto one that takes no part.
    landed = (place < GROUP) & (inside.gather(-1, place.clamp(max=GROUP - 1)) > 0)
    if not landed.all():
        place = torch.where(landed, place, inside.argmax(dim=-1, keepdim=True))
    return starts + place.squeeze(-1)
