"""Quality of one model on one split, exact over all rows and processes."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from distillkit.data.batches import by_length
from distillkit.data.encode import Encoded
from distillkit.signals import Model
from distillkit.tasks.base import Answers, Task


@dataclass(frozen=True)
class Evaluation:
    """The outcome, the same on every process.

    Attributes:
        metrics: Name → value.
        answers: Columns with an entry for each example of the split, in the order of its rows.
    """

    metrics: dict[str, float]
    answers: Answers


@torch.no_grad()
def evaluate(
    model: Model,
    task: Task,
    data: Encoded,
    batch_size: int,
    accelerator: Accelerator,
    autocast: bool = False,
    keep_answers: bool = True,
) -> Evaluation:
    """Run a model over every row once.

    Args:
        model: Answers batches; put it into eval mode first.
        task: Judges the answers.
        data: The rows.
        batch_size: Rows of a forward pass.
        accelerator: Its processes share the rows, and exchange what they found.
        autocast: Run in the accelerator's mixed precision, as while training, instead of the model's own.
        keep_answers: Exchange and return all columns of the answers, not only those that the metrics need.
    """
    batches = by_length(data.lengths, batch_size)
    found: Answers = {}
    rows: list[int] = []
    for indices in batches[accelerator.process_index :: accelerator.num_processes]:
        batch = data.batch(indices).to(accelerator.device)
        with accelerator.autocast() if autocast else nullcontext():
            answers = task.answer(model, batch)
        rows.extend(indices.tolist())
        for column, values in answers.items():
            if keep_answers or column in task.metric_columns:
                found.setdefault(column, []).extend(values)
    answers = task.merge(_in_order(gather_object([(rows, found)])))
    return Evaluation(task.metrics(answers), answers)


def _in_order(shares: list[tuple[list[int], Answers]]) -> Answers:
    """Put the answers of all processes into the order of the rows."""
    order = np.argsort(np.concatenate([rows for rows, _ in shares]), kind="stable")
    columns = dict.fromkeys(column for _, answers in shares for column in answers)
    joined = {column: [value for _, answers in shares for value in answers.get(column, [])] for column in columns}
    return {column: [values[index] for index in order] for column, values in joined.items()}
