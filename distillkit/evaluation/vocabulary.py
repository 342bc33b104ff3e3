"""Divergence from the teacher and calibration of models over a vocabulary, item by item, without keeping logits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from distillkit.data.batches import by_length
from distillkit.data.encode import Encoded
from distillkit.evaluation.calibration import Calibration
from distillkit.losses.shared import floored, kl, shared_logits
from distillkit.signals import Batch, Logits, Model, chunks


@dataclass
class Spread:
    """What one model's distributions over the vocabulary came to.

    Attributes:
        divergence: Summed KL(teacher ‖ model) in nats.
        items: How many items it is summed over.
        calibration: Of the most likely token.
    """

    divergence: float = 0.0
    items: int = 0
    calibration: Calibration = field(default_factory=Calibration)

    def add(self, other: Spread) -> None:
        """Take over what another process found."""
        self.divergence += other.divergence
        self.items += other.items
        self.calibration.merge(other.calibration)


@torch.no_grad()
def spreads(models: Mapping[str, Model], data: Encoded, batch_size: int, accelerator: Accelerator) -> dict[str, Spread]:
    """Run all models on the same batches and compare each with the first one.

    Logits are made chunk by chunk, in float32, and thrown away; sums are kept in float64. A padded vocabulary may be
    wider: the classes that both models have are compared.

    Args:
        models: The teacher first.
        data: The rows.
        batch_size: Rows of a forward pass.
        accelerator: Its processes share the rows and exchange their sums.
    """
    (reference, teacher), *_ = models.items()
    found = {name: Spread() for name in models}
    batches = by_length(data.lengths, batch_size)
    for indices in batches[accelerator.process_index :: accelerator.num_processes]:
        batch = data.batch(indices).to(accelerator.device)
        taught = _logits(teacher, batch)
        for name, model in models.items():
            said = taught if name == reference else _logits(model, batch)
            _add(found[name], said, taught, batch)
    total = {name: Spread() for name in models}
    for share in gather_object([found]):
        for name, spread in share.items():
            total[name].add(spread)
    return total


def _add(spread: Spread, said: Logits, taught: Logits, batch: Batch) -> None:
    for start, stop in chunks(len(said), max(said.classes, taught.classes)):
        logits, labels = said.rows(start, stop).float(), batch.labels[start:stop]
        log_q = logits.log_softmax(dim=-1)
        best, token = log_q.max(dim=-1)
        known = labels >= 0
        right = (token == labels)[known].double()
        spread.calibration.add(best[known].double().exp().cpu().numpy(), right.cpu().numpy())
        spread.items += stop - start
        if said is not taught:
            logits, teacher = shared_logits(logits, taught.rows(start, stop).float())
            log_q = log_q if logits.shape == log_q.shape else logits.log_softmax(dim=-1)
            spread.divergence += float(kl(floored(teacher.log_softmax(dim=-1)), log_q).double().sum())


def _logits(model: Model, batch: Batch) -> Logits:
    logits = model(batch).logits
    assert logits is not None
    return logits
