"""Scores of texts (or pairs): an item is a row, and the teacher's score is what a student learns from."""

from __future__ import annotations

from math import fsum, isnan
from typing import Any

import torch
from torch import Tensor

from distillkit.errors import UserError
from distillkit.metrics.regression import REGRESSION, regression_metrics
from distillkit.signals import Batch, Model
from distillkit.tasks.base import Answers, Row
from distillkit.tasks.labels import set_problem
from distillkit.tasks.metric_choice import chosen_metrics
from distillkit.tasks.sequence import SequenceTask, row_logits


class Regression(SequenceTask):
    """A `score`, any number, for each row of `text` (and `text_pair`).

    Args:
        max_length: Tokens of a row; of longer rows the longer text is cut.
        truncation: The side on which: "right" or "left".
        metrics: What is reported: pearson, spearman, mse, mae, r2. The first one chooses the best weights.
    """

    name = "regression"
    has_classes = False
    label_column = "score"
    output_kind = "scores"
    metric_columns = ("score", "prediction", "loss")

    def __init__(self, max_length: int = 128, truncation: str = "right", metrics: list[str] | None = None) -> None:
        super().__init__(max_length, truncation)
        self.metric_names = chosen_metrics(metrics, ("pearson", "spearman"), REGRESSION)
        self.best_metric = self.metric_names[0]

    def prepare(self, config: Any, labels: list[str] | None, trained: bool, key: str) -> None:  # noqa: ARG002
        """Give a model one output."""
        if trained and config.num_labels != 1:
            raise UserError(f"the model has {config.num_labels} outputs, not one score", where=key)
        config.num_labels = 1
        set_problem(config, "regression", trained, key)

    def encode_labels(self, given: list[Any], label_ids: dict[str, int]) -> dict[str, list]:  # noqa: ARG002
        """Keep scores, NaN where there is none."""
        return {"score": [float("nan") if score is None else float(score) for score in given]}

    def labels(self, rows: list[Row]) -> Tensor:
        """Stack: float32 `[rows, 1]`."""
        return torch.tensor([[row["score"]] for row in rows], dtype=torch.float32)

    def decide(self, logits: Tensor, labels: list[str]) -> list[float]:  # noqa: ARG002
        """Return the scores."""
        return logits[:, 0].tolist()

    def answer(self, model: Model, batch: Batch) -> Answers:
        """Return each row's score, prediction and squared error (NaN without a score)."""
        values = row_logits(model, batch)
        return {
            "score": batch.labels[:, 0].tolist(),
            "prediction": values[:, 0].tolist(),
            "loss": (values - batch.labels).square()[:, 0].tolist(),
        }

    def metrics(self, answers: Answers) -> dict[str, float]:
        """Return the chosen metrics and mean squared error, of the rows that have a score."""
        known = [index for index, loss in enumerate(answers["loss"]) if not isnan(loss)]
        if not known:
            raise UserError("no row has a score to evaluate on", where="dataset.columns.score")
        score, prediction, loss = ([answers[name][i] for i in known] for name in self.metric_columns)
        chosen = [name for name in self.metric_names if name != "loss"]
        return regression_metrics(score, prediction, chosen) | {"loss": fsum(loss) / len(loss)}
