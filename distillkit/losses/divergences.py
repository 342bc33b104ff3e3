"""Divergences between the softened outputs of teacher and student.

p and q are the softmax of the teacher's and the student's logits divided by the temperature T. All are in nats per
item, over the classes that both models have.

Near q = p every smooth divergence is a quadratic form in the difference of logits over T, so its gradient falls as
1/T² and the factor T² keeps its size (Hinton, Vinyals, Dean 2015, section 2). Where the factor is another one, the
class says so.

The student's logits must be finite. A class to which the teacher gives probability zero (a logit of −inf) is right
wherever the definition is finite; `ReverseKL`, `SymmetricKL`, `AdaptiveKL`, `SkewedReverseKL` at α = 0 and
`GeneralizedJSD` at β = 1 are infinite by definition.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.linalg import vecdot

from distillkit.losses.derivatives import Block, Pair, Softmax
from distillkit.losses.listed import derive_listed
from distillkit.losses.schedule import Schedule
from distillkit.losses.shared import (
    EXPONENT,
    TaughtLoss,
    floored,
    fraction,
    kl,
    kl_to_mixture,
    log_mixture,
    shared_logits,
    soften,
)
from distillkit.losses.sparse import listing
from distillkit.signals import SparseLogits


class Divergence(TaughtLoss):
    """T^power · D(p, q).

    A kind of divergence is its `between`. Where it also knows its `pull`, the vocabulary pass takes the gradient from
    that, else from autograd.

    Args:
        temperature: T.
    """

    power = 2

    def __init__(self, temperature: float | Schedule = 1.0) -> None:
        super().__init__()
        self.temperature = self.temperature_from(temperature)

    def between(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Return D `[items]` from log-probabilities of teacher and student `[items, classes]`."""
        raise NotImplementedError

    def pull(self, at: Pair) -> tuple[Tensor, Tensor | Softmax]:
        """Return D `[items]`, and −∂D / ∂ log q `[items, classes]` with p held, up to a multiple of q.

        The second says how strongly each class pulls at the student's probability; where it is p, as the softmax it is.
        """
        raise NotImplementedError

    def derive(self, block: Block, scale: float) -> Tensor:
        """Add scale times the derivative of `per_item` to the block; return nats `[items]`."""
        at, factor = block.pair(self.temperature), self.temperature**self.power
        value, pull = self.pull(at)
        at.student.add(pull, factor * scale)
        return factor * value

    def derive_listed(self, block: Block, teacher: SparseLogits, scale: float) -> Tensor | None:
        """Do what `derive` does with a teacher that lists some classes, where D is linear in p; None if it cannot."""
        factor = self.temperature**self.power
        logs = derive_listed(block, listing(teacher, self), self.temperature, factor * scale)
        return None if logs is None else factor * self.between(*logs)

    def per_item(self, student: Tensor, teacher: Tensor | None, labels: Tensor) -> Tensor:  # noqa: ARG002
        """Return nats `[items]`, over the classes that both have."""
        student, teacher = shared_logits(student, teacher)
        log_q = soften(student, self.temperature).log_softmax(dim=-1)
        log_p = soften(teacher, self.temperature).log_softmax(dim=-1)
        return self.temperature**self.power * self.between(log_p, log_q)


class ForwardKL(Divergence):
    """T² · KL(p ‖ q) = T² · Σ p (log p − log q)   (Hinton, Vinyals, Dean 2015).

    The teacher's entropy is included: identical models give zero.

    Args:
        temperature: T.
    """

    linear = True

    def between(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Return KL(p ‖ q)."""
        return kl(floored(log_p), log_q)

    def pull(self, at: Pair) -> tuple[Tensor, Tensor | Softmax]:
        """Return KL(p ‖ q) and p."""
        return at.kl(), at.teacher


class ReverseKL(Divergence):
    """T² · KL(q ‖ p) = T² · Σ q (log q − log p): the student keeps to what the teacher finds likely (Gu et al. 2024).

    Args:
        temperature: T.
    """

    def between(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Return KL(q ‖ p)."""
        return kl(log_q, log_p)

    def pull(self, at: Pair) -> tuple[Tensor, Tensor | Softmax]:
        """Return Σ q log(q / p) and q log(p / q)."""
        pull = at.q * at.log_ratio
        return -pull.sum(dim=-1), pull


class SoftCrossEntropy(Divergence):
    """T² · −Σ p log q: `ForwardKL` plus the teacher's entropy T² · H(p), with the same gradient.

    Identical models give the teacher's entropy and not zero, so the value grows with T.

    Args:
        temperature: T.
    """

    linear = True

    def between(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Return −Σ p log q."""
        return -(log_p.exp() * log_q).sum(dim=-1)

    def pull(self, at: Pair) -> tuple[Tensor, Tensor | Softmax]:
        """Return −Σ p log q and p."""
        return at.student.log_total.squeeze(-1) - at.teacher.mean(at.student.shifted), at.teacher


class SymmetricKL(Divergence):
    """T² · ½ (KL(p ‖ q) + KL(q ‖ p)) = T² · ½ Σ (p − q)(log p − log q): half of Jeffreys' divergence.

    With the half it is near q = p what either KL is.

    Args:
        temperature: T.
    """

    def between(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Return the mean of both KLs."""
        return (kl(floored(log_p), log_q) + kl(log_q, log_p)) / 2

    def pull(self, at: Pair) -> tuple[Tensor, Tensor | Softmax]:
        """Return ½ Σ (p − q) log(p / q) and ½ (p + q log(p / q))."""
        return vecdot(at.p - at.q, at.log_ratio) / 2, (at.q * at.log_ratio).add_(at.p).div_(2)


class GeneralizedJSD(Divergence):
    """T² · [β KL(p ‖ m) + (1 − β) KL(q ‖ m)] / (β (1 − β)), with m = β p + (1 − β) q   (Agarwal et al. 2024, GKD).

    The divisor is not in the paper, where the value vanishes with β although β = 0 is to mean forward KL.
    Divided, it tends to KL(p ‖ q) as β → 0 and to KL(q ‖ p) as β → 1, and near q = p it is for every β what the KLs
    are, so that β does not change the effective learning rate. At β = ½ it is 4 times the Jensen-Shannon divergence.

    Args:
        beta: β in [0, 1].
        temperature: T.
    """

    def __init__(self, beta: float = 0.5, temperature: float | Schedule = 1.0) -> None:
        super().__init__(temperature)
        self.beta = fraction(beta, "beta")
        self.linear = self.beta == 0

    def between(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Return KL(p ‖ m) / (1 − β) + KL(q ‖ m) / β."""
        if self.beta == 0:
            return kl(floored(log_p), log_q)
        if self.beta == 1:
            return kl(log_q, log_p)
        return kl_to_mixture(log_p, log_q, 1 - self.beta) + kl_to_mixture(log_q, log_p, self.beta)

    def pull(self, at: Pair) -> tuple[Tensor, Tensor | Softmax]:
        """Return D and q log(m / q) / β, whose sum is less the student's part of D; it tends to p − q as β → 0."""
        if self.beta == 0:
            return at.kl(), at.teacher
        if self.beta == 1:
            pull = at.q * at.log_ratio
            return -pull.sum(dim=-1), pull
        log_ratio = at.log_ratio.clamp(-EXPONENT, EXPONENT)
        if self.beta <= 0.5:  # one logarithm gives both, and the other way round would lose digits
            over_q = log_mixture(log_ratio, self.beta)  # log(m / q)
            over_p = over_q - log_ratio
        else:
            over_p = log_mixture(-log_ratio, 1 - self.beta)
            over_q = over_p + log_ratio
        pull = over_q.mul_(at.q).div_(self.beta)
        return -pull.sum(dim=-1) - at.teacher.mean(over_p) / (1 - self.beta), pull


class SkewedForwardKL(Divergence):
    """T² · KL(p ‖ α p + (1 − α) q)   (Ko et al. 2024, DistiLLM).

    Bounded by T² · log(1/α). Near q = p it is (1 − α)² times forward KL.

    Args:
        alpha: α in [0, 1); 0 is forward KL.
        temperature: T.
    """

    def __init__(self, alpha: float = 0.1, temperature: float | Schedule = 1.0) -> None:
        super().__init__(temperature)
        self.alpha = fraction(alpha, "alpha", including_one=False)

    def between(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Return KL(p ‖ α p + (1 − α) q)."""
        return (1 - self.alpha) * kl_to_mixture(floored(log_p), log_q, 1 - self.alpha)

    def pull(self, at: Pair) -> tuple[Tensor, Tensor | Softmax]:
        """Return −Σ p log(m / p) and p s, where s = (1 − α) q / m is the student's share of the mixture."""
        value = -vecdot(at.p, log_mixture(-floored(at.log_ratio), 1 - self.alpha))
        return value, _share(-at.log_ratio, 1 - self.alpha).mul_(at.p)


class SkewedReverseKL(SkewedForwardKL):
    """T² · KL(q ‖ (1 − α) p + α q)   (Ko et al. 2024, DistiLLM).

    Bounded by T² · log(1/α). Near q = p it is (1 − α)² times reverse KL.

    Args:
        alpha: α in [0, 1); 0 is reverse KL.
        temperature: T.
    """

    def between(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Return KL(q ‖ (1 − α) p + α q)."""
        return (1 - self.alpha) * kl_to_mixture(log_q, log_p, 1 - self.alpha)

    def pull(self, at: Pair) -> tuple[Tensor, Tensor | Softmax]:
        """Return −Σ q log(m / q) and q (log(m / q) + s), where s = α q / m is the student's share of the mixture."""
        pull = at.q * log_mixture(at.log_ratio, 1 - self.alpha)
        return -pull.sum(dim=-1), pull.addcmul_(at.q, _share(-at.log_ratio, self.alpha))


class AdaptiveKL(Divergence):
    """T² · [w KL(p ‖ q) + (1 − w) KL(q ‖ p)], w an item's share of error in the teacher's head   (Wu et al. 2024).

    The head is the fewest classes that hold mass μ of p (and what ties with the last of them); g sums |p − q| over
    the head or the rest, and w = g_head / (g_head + g_tail), ½ where both are zero. w is a constant for the
    gradient. ("Rethinking Kullback-Leibler Divergence in Knowledge Distillation for Large Language Models".)

    Args:
        head: μ in [0, 1]; at 0 the head is the top class.
        temperature: T.
    """

    def __init__(self, head: float = 0.5, temperature: float | Schedule = 1.0) -> None:
        super().__init__(temperature)
        self.head = fraction(head, "head")

    def between(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Return the mix of both KLs."""
        share = self.forward_share(log_p.exp(), log_q.exp())
        return share * kl(floored(log_p), log_q) + (1 - share) * kl(log_q, log_p)

    def pull(self, at: Pair) -> tuple[Tensor, Tensor | Softmax]:
        """Return D and w p + (1 − w) q log(p / q)."""
        share, reverse = self.forward_share(at.p, at.q), at.q * at.log_ratio
        value = share * at.kl() - (1 - share) * reverse.sum(dim=-1)
        share = share.unsqueeze(-1)
        return value, reverse.mul_(1 - share).addcmul_(at.p, share)

    @torch.no_grad()
    def forward_share(self, p: Tensor, q: Tensor) -> Tensor:
        """Return w `[items]`."""
        ranked = p.sort(dim=-1, descending=True).values
        size = (ranked.cumsum(dim=-1) < self.head).sum(dim=-1, keepdim=True).clamp(max=p.shape[-1] - 1)
        in_head = p >= ranked.gather(-1, size)
        error = (p - q).abs()
        of_head, whole = (error * in_head).sum(dim=-1), error.sum(dim=-1)
        return torch.where(whole > 0, of_head / whole, 0.5)


class TotalVariation(Divergence):
    """T · ½ Σ |p − q|.

    The factor is T and not T²: the distance is of first order in p − q, so its gradient falls as 1/T only. That
    gradient does not fade as q nears p; at q = p itself it is zero.

    Args:
        temperature: T.
    """

    power = 1

    def between(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Return ½ Σ |p − q|."""
        return (log_p.exp() - log_q.exp()).abs().sum(dim=-1) / 2

    def pull(self, at: Pair) -> tuple[Tensor, Tensor | Softmax]:
        """Return ½ Σ |p − q| and ½ q sign(p − q)."""
        change = at.p - at.q
        return change.abs().sum(dim=-1) / 2, change.sign_().mul_(at.q).div_(2)


def _share(log_ratio: Tensor, weight: float) -> Tensor:
    """Return w a / (w a + (1 − w) b), how much of a mixture is a's, from log(a / b)."""
    odds = math.inf if weight == 1 else math.log(weight / (1 - weight)) if weight > 0 else -math.inf
    return (log_ratio + odds).sigmoid_()
