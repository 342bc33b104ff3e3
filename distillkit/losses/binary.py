"""Divergences of models that give each class a probability by itself, so that an item may have several."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from distillkit.losses.schedule import Schedule
from distillkit.losses.shared import TaughtLoss, floored, present, shared_logits, soften


class BinaryKL(TaughtLoss):
    """T² · mean over the classes of KL((p, 1 − p) ‖ (q, 1 − q)), p and q the sigmoid of the logits over T.

    It is to `BinaryCrossEntropy` what `ForwardKL` is to `CrossEntropy`: identical models give zero, and the factor
    keeps the gradient's size. With a teacher that lists only some classes the mean is over those; it must have kept
    its normaliser.

    Args:
        temperature: T.
    """

    lumps = False
    absolute = True
    fits = frozenset({"labels"})

    def __init__(self, temperature: float | Schedule = 1.0) -> None:
        super().__init__()
        self.temperature = self.temperature_from(temperature)

    def per_item(self, student: Tensor, teacher: Tensor | None, labels: Tensor) -> Tensor:  # noqa: ARG002
        """Return nats `[items]`, over the classes that both have."""
        ours, theirs = (soften(logits, self.temperature) for logits in shared_logits(student, teacher))
        yes = theirs.sigmoid() * (floored(logsigmoid(theirs)) - logsigmoid(ours))
        no = (-theirs).sigmoid() * (floored(logsigmoid(-theirs)) - logsigmoid(-ours))
        return self.temperature**2 * (yes + no).sum(dim=-1) / present(ours).sum(dim=-1).clamp(min=1)
