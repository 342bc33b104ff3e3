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

import torch
from torch import Tensor

from distillkit.losses.schedule import Schedule
from distillkit.losses.shared import TaughtLoss, floored, fraction, kl, kl_to_mixture, shared_logits, soften


class Divergence(TaughtLoss):
    """T^power · D(p, q).

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

    def between(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Return KL(p ‖ q)."""
        return kl(floored(log_p), log_q)


class ReverseKL(Divergence):
    """T² · KL(q ‖ p) = T² · Σ q (log q − log p): the student keeps to what the teacher finds likely (Gu et al. 2024).

    Args:
        temperature: T.
    """

    def between(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Return KL(q ‖ p)."""
        return kl(log_q, log_p)


class SoftCrossEntropy(Divergence):
    """T² · −Σ p log q: `ForwardKL` plus the teacher's entropy T² · H(p), with the same gradient.

    Identical models give the teacher's entropy and not zero, so the value grows with T.

    Args:
        temperature: T.
    """

    def between(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Return −Σ p log q."""
        return -(log_p.exp() * log_q).sum(dim=-1)


class SymmetricKL(Divergence):
    """T² · ½ (KL(p ‖ q) + KL(q ‖ p)) = T² · ½ Σ (p − q)(log p − log q): half of Jeffreys' divergence.

    With the half it is near q = p what either KL is.

    Args:
        temperature: T.
    """

    def between(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Return the mean of both KLs."""
        return (kl(floored(log_p), log_q) + kl(log_q, log_p)) / 2


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

    def between(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Return KL(p ‖ m) / (1 − β) + KL(q ‖ m) / β."""
        if self.beta == 0:
            return kl(floored(log_p), log_q)
        if self.beta == 1:
            return kl(log_q, log_p)
        return kl_to_mixture(log_p, log_q, 1 - self.beta) + kl_to_mixture(log_q, log_p, self.beta)


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
        share = self.forward_share(log_p, log_q)
        return share * kl(floored(log_p), log_q) + (1 - share) * kl(log_q, log_p)

    @torch.no_grad()
    def forward_share(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Return w `[items]`."""
        p = log_p.exp()
        ranked = p.sort(dim=-1, descending=True).values
        size = (ranked.cumsum(dim=-1) < self.head).sum(dim=-1, keepdim=True).clamp(max=p.shape[-1] - 1)
        in_head = p >= ranked.gather(-1, size)
        error = (p - log_q.exp()).abs()
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
