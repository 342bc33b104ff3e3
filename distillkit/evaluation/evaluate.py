"""Quality of one model on one split, exact over all items and processes."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor

from distillkit.data.batches import by_length
from distillkit.data.encode import Encoded
from distillkit.signals import Model
from distillkit.tasks.base import Task


@dataclass(frozen=True)
class Evaluation:
    """The outcome.

    Attributes:
        metrics: Name → value; "agreement" (share of items with the reference's prediction) if there was one.
        predictions: int64 `[items]` of this process's share, to be another evaluation's reference.
    """

    metrics: dict[str, float]
    predictions: Tensor


@torch.no_grad()
def evaluate(
    model: Model,
    task: Task,
    data: Encoded,
    batch_size: int,
    accelerator: Accelerator,
    reference: Tensor | None = None,
    autocast: bool = False,
) -> Evaluation:
    """Run a model over every row once.

    Args:
        model: Answers batches; put it into eval mode first.
        task: Scores the answers.
        data: The rows.
        batch_size: Rows of a forward pass.
        accelerator: Its processes share the rows; their sums are added.
        reference: Predictions of another model in an evaluation of the same rows, batch size and processes.
        autocast: Run in the accelerator's mixed precision, as while training, instead of the model's own.
    """
    totals: dict[str, Tensor] = {}
    predictions = []
    batches = by_length(data.lengths, batch_size)
    for rows in batches[accelerator.process_index :: accelerator.num_processes]:
        batch = data.batch(rows).to(accelerator.device)
        with accelerator.autocast() if autocast else nullcontext():
            signal = model(batch)
        sums, predicted = task.score(signal, batch)
        totals = {name: totals[name] + value if totals else value for name, value in sums.items()}
        predictions.append(predicted.cpu())
    if not totals:  # more processes than batches
        batch = data.batch(batches[0]).to(accelerator.device)
        with accelerator.autocast() if autocast else nullcontext():
            signal = model(batch)
        sums, _ = task.score(signal, batch)
        totals = {name: torch.zeros_like(value) for name, value in sums.items()}
    mine = torch.cat(predictions) if predictions else torch.zeros(0, dtype=torch.int64)
    if reference is not None:
        totals["agreed"] = (mine == reference).sum().to(accelerator.device)
        totals["compared"] = torch.tensor(len(mine), device=accelerator.device)
    totals = {name: accelerator.reduce(value, reduction="sum") for name, value in totals.items()}
    agreed, compared = totals.pop("agreed", None), totals.pop("compared", None)
    metrics = task.metrics(totals)
    if agreed is not None and compared is not None:
        metrics["agreement"] = (agreed / compared).item()
    return Evaluation(metrics, mine)
