"""Every loss between the logits of two models, and the same written out in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from distillkit.losses.base import LogitLoss
from distillkit.losses.binary import BinaryKL
from distillkit.losses.decoupled import DecoupledKD
from distillkit.losses.divergences import (
    AdaptiveKL,
    ForwardKL,
    GeneralizedJSD,
    ReverseKL,
    SkewedForwardKL,
    SkewedReverseKL,
    SoftCrossEntropy,
    SymmetricKL,
    TotalVariation,
)
from distillkit.losses.logits import Correlation, LogitMSE, RankingHinge, RankingLogistic

ITEMS, CLASSES = 7, 11
Row = list[float]


def softmax(logits: Row, temperature: float) -> Row:
    top = max(logits)
    powers = [math.exp((value - top) / temperature) for value in logits]
    return [power / math.fsum(powers) for power in powers]


def kl(a: Row, b: Row) -> float:
    return math.fsum(x * math.log(x / y) if y > 0 else math.inf for x, y in zip(a, b, strict=True) if x > 0)


def mixture(a: Row, b: Row, share: float) -> Row:
    """`share` of a and the rest of b."""
    return [share * x + (1 - share) * y for x, y in zip(a, b, strict=True)]


def jsd(p: Row, q: Row, beta: float) -> float:
    if beta in (0, 1):
        return kl(p, q) if beta == 0 else kl(q, p)
    middle = mixture(p, q, beta)
    return (beta * kl(p, middle) + (1 - beta) * kl(q, middle)) / (beta * (1 - beta))


def adaptive(p: Row, q: Row, head: float) -> float:
    mass, last = 0.0, 1.0
    for value in sorted(p, reverse=True):
        last = value if mass < head else last
        mass += value
    gaps = [abs(x - y) for x, y in zip(p, q, strict=True)]
    share = math.fsum(gap for gap, x in zip(gaps, p, strict=True) if x >= last) / math.fsum(gaps) if any(gaps) else 0.5
    return share * kl(p, q) + (1 - share) * kl(q, p)


def decoupled(p: Row, q: Row, label: int, alpha: float, beta: float) -> float:
    others = [[x / (1 - a[label]) for index, x in enumerate(a) if index != label] for a in (p, q)]
    return alpha * kl([p[label], 1 - p[label]], [q[label], 1 - q[label]]) + beta * kl(*others)


def pearson(a: Row, b: Row) -> float:
    (da, db) = ([x - math.fsum(row) / len(row) for x in row] for row in (a, b))
    product = math.fsum(x * y for x, y in zip(da, db, strict=True))
    return product / math.sqrt(math.fsum(x * x for x in da) * math.fsum(y * y for y in db))


def squared_error(s: Row, t: Row, centred: bool) -> float:
    errors = [x - y for x, y in zip(s, t, strict=True)]
    mean = math.fsum(errors) / len(errors) if centred else 0.0
    return math.fsum((error - mean) ** 2 for error in errors) / len(errors)


def binary(s: Row, t: Row, temperature: float) -> float:
    pairs = [[1 / (1 + math.exp(-x / temperature)) for x in pair] for pair in zip(t, s, strict=True)]
    return temperature**2 * math.fsum(kl([p, 1 - p], [q, 1 - q]) for p, q in pairs) / len(pairs)


def ranking(s: Row, t: Row, k: int, penalty: Callable[[float], float]) -> float:
    top = sorted(range(len(t)), key=lambda index: -t[index])[:k]
    pairs = [(i, j) for i in top for j in top if t[i] > t[j]]
    return math.fsum(penalty(s[i] - s[j]) for i, j in pairs) / len(pairs) if pairs else 0.0


@dataclass(frozen=True)
class Case:
    """A loss, and the same written out for one item: (student, teacher, label, T) → value."""

    make: Callable[[float], LogitLoss]
    formula: Callable[[Row, Row, int, float], float]
    zero: bool = True  # for identical models
    flat: bool = True  # identical models get no gradient
    softened: bool = True  # has a temperature
    allows_inf: bool = True  # a teacher may rule a class out


def of(between: Callable[[Row, Row], float], power: int = 2) -> Callable[[Row, Row, int, float], float]:
    return lambda s, t, _, temp: temp**power * between(softmax(t, temp), softmax(s, temp))


CASES = {
    "forward": Case(ForwardKL, of(kl)),
    "reverse": Case(ReverseKL, of(lambda p, q: kl(q, p)), allows_inf=False),
    "soft cross-entropy": Case(
        SoftCrossEntropy, of(lambda p, q: -math.fsum(x * math.log(y) for x, y in zip(p, q, strict=True))), zero=False
    ),
    "symmetric": Case(SymmetricKL, of(lambda p, q: (kl(p, q) + kl(q, p)) / 2), allows_inf=False),
    "jsd": Case(lambda temp: GeneralizedJSD(0.5, temp), of(lambda p, q: jsd(p, q, 0.5))),
    "jsd 0": Case(lambda temp: GeneralizedJSD(0, temp), of(kl)),
    "jsd 0.001": Case(lambda temp: GeneralizedJSD(0.001, temp), of(lambda p, q: jsd(p, q, 0.001))),
    "jsd 1": Case(lambda temp: GeneralizedJSD(1, temp), of(lambda p, q: kl(q, p)), allows_inf=False),
    "jsd 0.9": Case(lambda temp: GeneralizedJSD(0.9, temp), of(lambda p, q: jsd(p, q, 0.9))),
    "skewed forward": Case(lambda temp: SkewedForwardKL(0.1, temp), of(lambda p, q: kl(p, mixture(p, q, 0.1)))),
    "skewed reverse": Case(lambda temp: SkewedReverseKL(0.1, temp), of(lambda p, q: kl(q, mixture(q, p, 0.1)))),
    "far skewed": Case(lambda temp: SkewedForwardKL(0.7, temp), of(lambda p, q: kl(p, mixture(p, q, 0.7)))),
    "skewed 0": Case(lambda temp: SkewedForwardKL(0.0, temp), of(kl)),
    "reverse skewed 0": Case(lambda temp: SkewedReverseKL(0.0, temp), of(lambda p, q: kl(q, p)), allows_inf=False),
    "adaptive": Case(lambda temp: AdaptiveKL(0.5, temp), of(lambda p, q: adaptive(p, q, 0.5)), allows_inf=False),
    "total variation": Case(
        TotalVariation, of(lambda p, q: math.fsum(abs(x - y) for x, y in zip(p, q, strict=True)) / 2, power=1)
    ),
    "decoupled": Case(
        lambda temp: DecoupledKD(1.0, 2.0, temp),
        lambda s, t, label, temp: temp**2 * decoupled(softmax(t, temp), softmax(s, temp), label, 1.0, 2.0),
    ),
    "binary": Case(BinaryKL, lambda s, t, _, temp: binary(s, t, temp)),
    "correlation": Case(Correlation, of(lambda p, q: 1 - pearson(p, q), power=0)),
    "squared error": Case(
        lambda _: LogitMSE(), lambda s, t, *_: squared_error(s, t, False), softened=False, allows_inf=False
    ),
    "centred squared error": Case(
        lambda _: LogitMSE(centred=True), lambda s, t, *_: squared_error(s, t, True), softened=False, allows_inf=False
    ),
    "logistic ranking": Case(
        lambda temp: RankingLogistic(5, temp),
        lambda s, t, _, temp: temp * ranking(s, t, 5, lambda gap: math.log1p(math.exp(-gap / temp))),
        zero=False,
        flat=False,
    ),
    "hinge ranking": Case(
        lambda _: RankingHinge(5, margin=0.5),
        lambda s, t, *_: ranking(s, t, 5, lambda gap: max(0.0, 0.5 - gap)),
        zero=False,
        flat=False,
        softened=False,
    ),
}
every = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def choose(wanted: Callable[[Case], bool]):
    chosen = {name: case for name, case in CASES.items() if wanted(case)}
    return pytest.mark.parametrize("case", chosen.values(), ids=chosen.keys())


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


LABELS = torch.randint(CLASSES, (ITEMS,), generator=torch.Generator().manual_seed(2))


def models() -> tuple[Tensor, Tensor]:
    return 3 * draw(ITEMS, CLASSES, seed=0), 3 * draw(ITEMS, CLASSES, seed=1)


def exact(case: Case, student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    rows = zip(student.tolist(), teacher.tolist(), LABELS.tolist(), strict=True)
    return torch.tensor([case.formula(s, t, label, temperature) for s, t, label in rows], dtype=torch.float64)
