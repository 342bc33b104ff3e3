"""The formats that `teacher_store.py` compares, each as what it tells a student: a target distribution."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from distillkit.cache.codec import Codec
from distillkit.cache.formats import codec_of
from distillkit.cache.sparse import Sampled, TopK, TopKSampled
from distillkit.signals import SparseLogits


@dataclass(frozen=True)
class Told:
    """What a student is told about some items.

    Attributes:
        size: Bytes, of all items.
        mass: The teacher's probability of what is listed `[items]`.
        spread: Log-probabilities `[items, classes]` that the format stands for; None if it only has random draws.
        target: p̃ `[items, classes]` such that the gradient of forward KL is q Σp̃ − p̃.
    """

    size: int
    mass: Tensor
    spread: Tensor | None
    target: Tensor


@dataclass(frozen=True)
class Format:
    """One way to keep a teacher's outputs.

    Attributes:
        tell: From the teacher's log p and the student's q, both `[items, classes]`, and seeds `[items]`.
        random: Whether the seeds matter.
    """

    tell: Callable[[Tensor, Tensor, Tensor], Told]
    random: bool = False


CODECS: tuple[Codec, ...] = (
    *(TopK(k, 1.0) for k in (5, 10, 15, 20, 31, 42, 84)),
    *(TopK(k, 0.99) for k in (20, 42, 84, 168)),
    *(TopK(20, 1.0, bits) for bits in (4, 6)),
    *(Sampled(draws) for draws in (8, 16, 32, 64, 128)),
    *(
        TopKSampled(k, least=0.0, draws=draws)
        for k, draws in ((4, 10), (8, 12), (10, 16), (16, 24), (20, 32), (40, 64))
    ),
    *(TopKSampled(64, least=1 / draws, draws=draws) for draws in (8, 12, 16, 24, 32, 40, 48, 64, 96, 128)),
    *(TopKSampled(64, least=1 / 32, draws=32, bits=bits) for bits in (4, 6)),
)


def label(codec: Codec) -> str:
    """Name a codec with its settings."""
    settings = {name: value for name, value in codec.describe(2)["arguments"].items() if name in LABELLED}
    return f"{codec.name} " + " ".join(f"{name}={value:g}" for name, value in settings.items())


LABELLED = ("k", "mass", "least", "draws", "bits")


def stored(codec: Codec) -> Format:
    """Write and read items in one of distillkit's formats."""

    def tell(log_p: Tensor, q: Tensor, seeds: Tensor) -> Told:
        columns = codec.encode(log_p, seeds).pack([len(log_p)])
        decoded = codec_of(codec.describe(log_p.shape[1])).decode(columns, log_p.shape[1])
        assert isinstance(decoded, SparseLogits)
        listed = decoded.with_draws() if decoded.drawn is not None else decoded
        spread = decoded.rows(0, len(decoded)) if decoded.ids.shape[1] else None
        size = sum(len(row) for rows in columns.values() for row in rows)
        return Told(size, _mass(log_p, decoded.ids), spread, _target(listed, q))

    return Format(tell, isinstance(codec, Sampled | TopKSampled))


def _mass(log_p: Tensor, ids: Tensor) -> Tensor:
    return (log_p.gather(1, ids.clamp(min=0)).exp() * (ids >= 0)).sum(dim=1)


def _target(listed: SparseLogits, q: Tensor) -> Tensor:
    """Return p̃: in the bucket of all others they share its probability as the student's do."""
    there, ids = listed.ids >= 0, listed.ids.clamp(min=0)
    probabilities = torch.where(there, listed.log_probs.exp(), 0.0)
    left = 1 - (q.gather(1, ids) * there).sum(dim=1, keepdim=True)
    share = listed.rest.exp().unsqueeze(1) / left.clamp(min=1e-9)
    return (q * share).scatter_add_(1, ids, probabilities - q.gather(1, ids) * share * there)


def arcee(k: int, exact: int, powers: tuple[float, ...], uniform: bool) -> Format:
    """Keep k ids; the first `exact` log-probabilities in bfloat16, the others as a fitted curve over their rank.

    After the description in arcee DistillKit's README: float32 coefficients by least squares. `uniform` spreads what is
    left over the other classes evenly, else it is ignored (`missing_probability_handling`).
    """
    ranks = torch.arange(k - exact, dtype=torch.float64) / max(k - exact - 1, 1)
    terms = torch.stack([ranks**power for power in powers], dim=1)

    def tell(log_p: Tensor, q: Tensor, seeds: Tensor) -> Told:  # noqa: ARG001
        items, classes = log_p.shape
        values, ids = log_p.topk(k, dim=1)
        fitted = torch.linalg.lstsq(terms, values[:, exact:].double().T).solution.float()
        values = torch.cat([values[:, :exact].bfloat16().float(), (terms.float() @ fitted).T], dim=1)
        values = values - values.logsumexp(dim=1, keepdim=True).clamp(min=0)  # rounding may come to more than 1
        left = (1 - values.exp().sum(dim=1, keepdim=True)).clamp(min=0) / (classes - k)
        spread = left.log().clamp(min=-30).expand(items, classes).scatter(1, ids, values)
        target = (left if uniform else 0 * left).expand(items, classes).scatter(1, ids, values.exp())
        size = items * ((k * (classes - 1).bit_length() + 7) // 8 + 2 * exact + 4 * len(powers))
        return Told(size, _mass(log_p, ids), spread, target)

    return Format(tell)


PEERS = {
    "arcee k=50, curve, missing: zero": arcee(50, 1, (0, 1, 0.5), uniform=False),
    "arcee k=50, curve, missing: uniform": arcee(50, 1, (0, 1, 0.5), uniform=True),
    "arcee k=128, curve, missing: zero": arcee(128, 16, (0, 1, 2, 3, 4, 0.5), uniform=False),
}
