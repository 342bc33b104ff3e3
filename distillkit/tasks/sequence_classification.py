"""Text (or pair) classification: an item is a row."""

from __future__ import annotations

from math import fsum
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForSequenceClassification

from distillkit.errors import UserError
from distillkit.metrics.classification import classification_metrics
from distillkit.signals import IGNORE, Batch, DenseLogits, Model, Signal
from distillkit.tasks.base import Answers, Row, Task, attention_mask, pad


class SequenceClassification(Task):
    """One label for each row of `text` (and `text_pair`).

    Args:
        max_length: Tokens of a row; longer rows are cut on the right.
    """

    name = "sequence_classification"
    required_columns = (("text",),)
    best_metric = "accuracy"
    metric_names = ("accuracy", "macro_f1", "loss")
    metric_columns = ("label", "prediction", "loss")
    has_classes = True

    def __init__(self, max_length: int = 128) -> None:
        if max_length < 3:
            raise UserError(f"must be at least 3, got {max_length}", where="task.max_length")
        self.max_length = max_length

    def auto_class(self) -> Any:
        """Return the transformers AutoModel class."""
        return AutoModelForSequenceClassification

    def encode(self, rows: dict[str, list[Any]], tokenizer: Any, label_ids: dict[str, int] | None) -> dict[str, list]:
        """Tokenise texts and turn label names into ids (`IGNORE` for a missing label)."""
        encoded = tokenizer(rows["text"], rows.get("text_pair"), truncation=True, max_length=self.max_length)
        names = rows.get("label") or [None] * len(rows["text"])
        ids = label_ids or {}
        columns = {"input_ids": encoded["input_ids"], "label": [IGNORE if n is None else ids[str(n)] for n in names]}
        for optional in ("token_type_ids",):
            if optional in encoded:
                columns[optional] = encoded[optional]
        if "teacher_logits" in rows:
            columns["teacher_logits"] = rows["teacher_logits"]
        return columns

    def collate(self, rows: list[Row], tokenizer: Any) -> Batch:
        """Pad rows into one batch."""
        ids = [row["input_ids"] for row in rows]
        inputs = {"input_ids": pad(ids, tokenizer.pad_token_id), "attention_mask": attention_mask(ids)}
        if "token_type_ids" in rows[0]:
            inputs["token_type_ids"] = pad([row["token_type_ids"] for row in rows], 0)
        everything = torch.ones(len(rows), dtype=torch.bool)
        recorded, taught = (
            _recorded([row["teacher_logits"] for row in rows])
            if "teacher_logits" in rows[0]
            else (
                None,
                everything,
            )
        )
        labels = torch.tensor([row["label"] for row in rows], dtype=torch.int64)
        return Batch(inputs, counted=everything, labels=labels, taught=taught, recorded=recorded)

    def signal(self, model: Any, batch: Batch) -> Signal:
        """Run the model: logits `[batch, classes]`."""
        return Signal(DenseLogits(model(**batch.inputs).logits))

    def answer(self, model: Model, batch: Batch) -> Answers:
        """Return each row's label, predicted class, cross-entropy (NaN without a label) and probabilities."""
        logits = model(batch).logits
        assert logits is not None
        values = logits.rows(0, len(logits)).float()
        losses = functional.cross_entropy(values, batch.labels, reduction="none", ignore_index=IGNORE)
        return {
            "label": batch.labels.tolist(),
            "prediction": values.argmax(dim=-1).tolist(),
            "loss": losses.masked_fill(batch.labels == IGNORE, torch.nan).tolist(),
            "probabilities": list(values.detach().softmax(dim=-1).cpu().numpy()),
        }

    def metrics(self, answers: Answers) -> dict[str, float]:
        """Return accuracy, macro F1 (over classes that occur as label or prediction) and mean cross-entropy."""
        known = [index for index, label in enumerate(answers["label"]) if label != IGNORE]
        if not known:
            raise UserError("no row has a label to evaluate on", where="dataset.columns.label")
        label, prediction, loss = ([answers[name][index] for index in known] for name in self.metric_columns)
        return classification_metrics(label, prediction) | {"loss": fsum(loss) / len(loss)}


def _recorded(logits: list[list[float] | None]) -> tuple[Tensor, Tensor]:
    """Stack recorded teacher logits `[items, classes]`; items without any are zeros and not taught."""
    taught = torch.tensor([row is not None for row in logits])
    classes = max((len(row) for row in logits if row is not None), default=1)
    return torch.tensor([row if row is not None else [0.0] * classes for row in logits]), taught
