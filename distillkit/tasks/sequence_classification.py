"""Text (or pair) classification: an item is a row, and of one class."""

from __future__ import annotations

from math import fsum
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from distillkit.errors import UserError, did_you_mean
from distillkit.metrics.classification import CLASSIFICATION, OF_ONE_CLASS, classification_metrics
from distillkit.signals import IGNORE, Batch, Model
from distillkit.tasks.base import Answers, Row
from distillkit.tasks.labels import set_problem
from distillkit.tasks.metric_choice import chosen_metrics
from distillkit.tasks.sequence import SequenceTask, row_logits


class SequenceClassification(SequenceTask):
    """One `label` for each row of `text` (and `text_pair`).

    Args:
        max_length: Tokens of a row; of longer rows the longer text is cut.
        truncation: The side on which: "right" or "left".
        metrics: What is reported: accuracy, macro_f1, macro_precision, macro_recall, micro_…, weighted_f1, matthews;
            precision, recall and f1 of one class. The first one chooses the best weights.
        positive: The class that precision, recall and f1 are about; null: the second.
    """

    name = "sequence_classification"
    has_classes = True
    label_column = "label"

    def __init__(
        self,
        max_length: int = 128,
        truncation: str = "right",
        metrics: list[str] | None = None,
        positive: str | None = None,
    ) -> None:
        super().__init__(max_length, truncation)
        self.metric_names = chosen_metrics(metrics, ("accuracy", "macro_f1"), CLASSIFICATION)
        self.best_metric = self.metric_names[0]
        self.positive = positive
        of_one = not OF_ONE_CLASS.isdisjoint(self.metric_names)
        self.metric_columns = ("label", "prediction", "loss", *(["positive"] if of_one else []))

    def prepare(self, config: Any, labels: list[str] | None, trained: bool, key: str) -> None:
        """Name the classes in a model's config."""
        super().prepare(config, labels, trained, key)
        set_problem(config, "single_label_classification", trained, key)

    def encode_labels(self, given: list[Any], label_ids: dict[str, int]) -> dict[str, list]:
        """Turn names into ids (`IGNORE` for a missing label)."""
        columns = {"label": [IGNORE if name is None else label_ids[name] for name in given]}
        if "positive" in self.metric_columns:
            columns["positive"] = [self._positive(label_ids)] * len(given)
        return columns

    def _positive(self, label_ids: dict[str, int]) -> int:
        if self.positive is None:
            return 1
        if self.positive not in label_ids:
            fix = did_you_mean(self.positive, list(label_ids))
            raise UserError(f"there is no class '{self.positive}'", where="task.positive", fix=fix)
        return label_ids[self.positive]

    def labels(self, rows: list[Row]) -> Tensor:
        """Stack class ids: int64 `[rows]`."""
        return torch.tensor([row["label"] for row in rows], dtype=torch.int64)

    def extras(self, rows: list[Row]) -> dict[str, list[Any]]:
        """Return the positive class, where a metric is about it."""
        return {"positive": [row["positive"] for row in rows]} if "positive" in rows[0] else {}

    def answer(self, model: Model, batch: Batch) -> Answers:
        """Return each row's label, predicted class, cross-entropy (NaN without a label) and probabilities."""
        values = row_logits(model, batch)
        losses = functional.cross_entropy(values, batch.labels, reduction="none", ignore_index=IGNORE)
        return {
            "label": batch.labels.tolist(),
            "prediction": values.argmax(dim=-1).tolist(),
            "loss": losses.masked_fill(batch.labels == IGNORE, torch.nan).tolist(),
            "probabilities": list(values.detach().softmax(dim=-1).cpu().numpy()),
            **batch.extras,
        }

    def metrics(self, answers: Answers) -> dict[str, float]:
        """Return the chosen metrics and mean cross-entropy, of the rows that have a label."""
        known = [index for index, label in enumerate(answers["label"]) if label != IGNORE]
        if not known:
            raise UserError("no row has a label to evaluate on", where="dataset.columns.label")
        label, prediction, loss = ([answers[name][i] for i in known] for name in ("label", "prediction", "loss"))
        positive = answers["positive"][0] if "positive" in answers else 1
        chosen = [name for name in self.metric_names if name != "loss"]
        return classification_metrics(label, prediction, chosen, positive) | {"loss": fsum(loss) / len(loss)}
