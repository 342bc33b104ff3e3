"""How well a store says what its teacher says, on a sample of items.

The gradient is that of the forward KL, at the temperature of the store, with respect to the logits of a student that
knows half: the teacher's logits divided by two.
"""

from __future__ import annotations

from math import sqrt
from typing import Any

import torch
from torch import Tensor

from distillkit.losses.divergences import ForwardKL
from distillkit.losses.sparse import compare
from distillkit.signals import IGNORE, DenseLogits, Logits, SparseLogits, chunks

STUDENT = 0.5  # of the teacher's logits


class Quality:
    """Compare decoded logits with the teacher's own, chunk by chunk.

    Args:
        classes: Of both.
        kind: "classes" (divergences), or "labels" and "scores" (differences only).
    """

    def __init__(self, classes: int, kind: str) -> None:
        self.kind = kind
        self.items = 0
        self.listed = True
        self.kl = self.mass = self.largest = 0.0
        self.products = torch.zeros(3, dtype=torch.float64)  # g·ĝ, g·g, ĝ·ĝ over all items
        self.total = torch.zeros(classes, dtype=torch.float64)  # g summed over the items
        self.errors = torch.zeros(2, classes, dtype=torch.float64)  # of every second item, and of the others

    @torch.no_grad()
    def add(self, teacher: Logits, decoded: DenseLogits | SparseLogits) -> None:
        """Look at some more items."""
        self.items += len(teacher)
        for start, stop in chunks(len(teacher), teacher.classes, 1 << 22):
            own, kept = teacher.rows(start, stop).float().cpu(), decoded[slice(start, stop)]
            if isinstance(kept, DenseLogits):
                self.largest = max(self.largest, (own - kept.values.float()).abs().max().item())
            if self.kind == "classes":
                self._add(own, kept)

    def _add(self, own: Tensor, kept: DenseLogits | SparseLogits) -> None:
        self.listed = isinstance(kept, DenseLogits) or kept.ids.shape[-1] > 0
        temperature = kept.temperature if isinstance(kept, SparseLogits) else 1.0
        log_probs = (own / temperature).log_softmax(dim=-1)
        probs = log_probs.exp()
        told = (kept.rows(0, len(kept)).float() / temperature).log_softmax(dim=-1)
        self.kl += (probs * (log_probs - told)).sum().item()
        self.mass += (probs if isinstance(kept, DenseLogits) else _listed(probs, kept)).sum().item()
        full, part = (_gradient(STUDENT * own, said, temperature) for said in (DenseLogits(own), kept))
        self.products += torch.stack([(full * part).sum(), full.square().sum(), part.square().sum()]).double()
        self.total += full.double().sum(dim=0)
        for half in range(2):
            self.errors[half] += (part - full)[half::2].double().sum(dim=0)

    def report(self) -> dict[str, Any]:
        """Return the averages over the items.

        "kl": nats an item, KL(teacher ‖ decoded), where what is not listed is spread evenly; None if nothing is.
        "covered_mass": the teacher's probability of what is listed. "gradient_cosine": between the gradients over all
        items and classes; what adds up over items hardly shows in it. "summed_gradient_cosine" and
        "summed_gradient_length": of the gradient summed over the items, as a bias of the output head gets it, to that
        of the teacher, and over its length: noise averages out there, and bias stays. "gradient_bias": length of the
        mean error over that of the mean gradient, estimated from two halves of the items, whose noise is independent.
        "largest_error": of a logit that is kept whole.
        """
        found: dict[str, Any] = {"items": self.items, "kl": None, "covered_mass": None}
        found |= dict.fromkeys(("gradient_cosine", "summed_gradient_cosine", "summed_gradient_length", "gradient_bias"))
        found["largest_error"] = self.largest
        if self.kind == "classes":
            both, own, other = self.products.tolist()
            found["kl"] = self.kl / self.items if self.listed else None
            found["covered_mass"] = self.mass / self.items
            found["gradient_cosine"] = both / max(sqrt(own * other), 1e-300)
            whole, kept = self.total, self.total + self.errors.sum(dim=0)
            length, kept_length = (max(total.norm().item(), 1e-300) for total in (whole, kept))
            found["summed_gradient_cosine"] = (whole @ kept).item() / (length * kept_length)
            found["summed_gradient_length"] = kept_length / length
            bias = 2 * (self.errors[0] @ self.errors[1]).clamp(min=0).sqrt()
            found["gradient_bias"] = bias.item() / length
        return found


def _listed(probs: Tensor, kept: SparseLogits) -> Tensor:
    there = kept.ids >= 0
    return probs.gather(-1, kept.ids.clamp(min=0)) * there


def _gradient(student: Tensor, teacher: DenseLogits | SparseLogits, temperature: float) -> Tensor:
    with torch.enable_grad():
        leaf = student.clone().requires_grad_()
        labels = torch.full((len(leaf),), IGNORE)
        (loss,) = compare([ForwardKL(temperature)], leaf, teacher, labels)
        return torch.autograd.grad(loss.sum(), leaf)[0]
