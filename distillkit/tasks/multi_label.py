"""Text (or pair) classification where any number of classes applies: an item is a row."""

from __future__ import annotations

from math import fsum, isnan
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from distillkit.errors import UserError
from distillkit.metrics.classification import MULTI_LABEL, classification_metrics
from distillkit.signals import Batch, Model
from distillkit.tasks.base import Answers, Row
from distillkit.tasks.labels import set_problem
from distillkit.tasks.metric_choice import chosen_metrics
from distillkit.tasks.sequence import SequenceTask, row_logits


class MultiLabelClassification(SequenceTask):
    """A list of `labels`, which may be empty, for each row of `text` (and `text_pair`).

    Args:
        max_length: Tokens of a row; of longer rows the longer text is cut.
        truncation: The side on which: "right" or "left".
        threshold: A class is predicted where its probability is higher.
        metrics: What is reported: micro_f1, micro_precision, micro_recall, macro_…, weighted_f1; accuracy, the share of
            rows with all classes right. The first one chooses the best weights.
    """

    name = "multi_label_classification"
    has_classes = True
    label_column = "labels"
    output_kind = "labels"
    metric_columns = ("labels", "prediction", "loss")

    def __init__(
        self,
        max_length: int = 128,
        truncation: str = "right",
        threshold: float = 0.5,
        metrics: list[str] | None = None,
    ) -> None:
        super().__init__(max_length, truncation)
        if not 0 < threshold < 1:
            raise UserError(f"must be between 0 and 1, got {threshold}", where="task.threshold")
        self.threshold = threshold
        self.metric_names = chosen_metrics(metrics, ("micro_f1", "macro_f1", "accuracy"), MULTI_LABEL)
        self.best_metric = self.metric_names[0]

    def prepare(self, config: Any, labels: list[str] | None, trained: bool, key: str) -> None:
        """Name the classes in a model's config."""
        super().prepare(config, labels, trained, key)
        set_problem(config, "multi_label_classification", trained, key)

    def encode_labels(self, given: list[Any], label_ids: dict[str, int]) -> dict[str, list]:
        """Turn a list of names into 1 for those classes and 0 for the others; all NaN where there is no list."""
        unknown = [float("nan")] * max(len(label_ids), 1)
        return {"labels": [unknown if names is None else [float(n in names) for n in label_ids] for names in given]}

    def labels(self, rows: list[Row]) -> Tensor:
        """Stack: float32 `[rows, classes]`."""
        return torch.tensor([row["labels"] for row in rows], dtype=torch.float32)

    def decide(self, logits: Tensor, labels: list[str]) -> list[list[str]]:
        """Return the names of the classes above the threshold."""
        chosen = (logits.sigmoid() > self.threshold).tolist()
        return [[name for name, is_so in zip(labels, row, strict=True) if is_so] for row in chosen]

    def answer(self, model: Model, batch: Batch) -> Answers:
        """Return each row's labels, predicted classes (both 1 or 0 for every class), loss and probabilities."""
        values = row_logits(model, batch)
        losses = functional.binary_cross_entropy_with_logits(values, batch.labels, reduction="none").mean(dim=-1)
        probabilities = values.detach().sigmoid()
        return {
            "labels": batch.labels.tolist(),
            "prediction": (probabilities > self.threshold).int().tolist(),
            "loss": losses.tolist(),
            "probabilities": list(probabilities.cpu().numpy()),
        }

    def metrics(self, answers: Answers) -> dict[str, float]:
        """Return the chosen metrics and mean binary cross-entropy, of the rows that have labels."""
        known = [index for index, loss in enumerate(answers["loss"]) if not isnan(loss)]
        if not known:
            raise UserError("no row has labels to evaluate on", where="dataset.columns.labels")
        labels, prediction, loss = ([answers[name][i] for i in known] for name in self.metric_columns)
        true = [[int(value) for value in row] for row in labels]
        chosen = [name for name in self.metric_names if name != "loss"]
        return classification_metrics(true, prediction, chosen) | {"loss": fsum(loss) / len(loss)}
