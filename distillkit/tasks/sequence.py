"""What tasks share whose item is a row of text: encoding, padding, and the teacher's recorded answers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from distillkit.signals import Batch, Model, Signal
from distillkit.tasks.base import Row, Task, attention_mask, pad
from distillkit.tasks.text import check_lengths, encode_texts


class SequenceTask(Task):
    """One answer for each row of `text` (and `text_pair`).

    Args:
        max_length: Tokens of a row; of longer rows the longer text is cut.
        truncation: The side on which: "right" or "left".
    """

    required_columns: tuple[tuple[str, ...], ...] = (("text", "text_pair"), ("text",))
    adds_head = True
    soft_labels = True

    def __init__(self, max_length: int = 128, truncation: str = "right") -> None:
        check_lengths(max_length, truncation)
        self.max_length = max_length
        self.truncation = truncation

    def auto_class(self) -> Any:
        """Return the transformers AutoModel class."""
        return AutoModelForSequenceClassification

    def encode(self, rows: dict[str, list[Any]], tokenizer: Any, label_ids: dict[str, int] | None) -> dict[str, list]:
        """Tokenise texts and turn hard labels into what `labels` reads."""
        encoded = encode_texts(rows["text"], rows.get("text_pair"), tokenizer, self.max_length, self.truncation)
        assert self.label_column is not None
        given = rows.get(self.label_column) or [None] * len(rows["text"])
        columns = encoded | self.encode_labels(given, label_ids or {})
        if "teacher_logits" in rows:
            columns |= check_recorded(rows["teacher_logits"], len(label_ids) if label_ids else 1)
        return columns

    def encode_labels(self, given: list[Any], label_ids: dict[str, int]) -> dict[str, list]:
        """Turn the rows' hard labels (None where there is none) into columns of the encoded rows."""
        raise NotImplementedError

    def labels(self, rows: list[Row]) -> Tensor:
        """Stack the hard labels of encoded rows, as the losses read them."""
        raise NotImplementedError

    def collate(self, rows: list[Row], tokenizer: Any) -> Batch:
        """Pad rows into one batch."""
        ids = [row["input_ids"] for row in rows]
        inputs = {"input_ids": pad(ids, tokenizer.pad_token_id), "attention_mask": attention_mask(ids)}
        if "token_type_ids" in rows[0]:
            inputs["token_type_ids"] = pad([row["token_type_ids"] for row in rows], 0)
        counted = torch.ones(len(rows), dtype=torch.bool)
        recorded, taught = recorded_logits(rows)
        return Batch(inputs, counted, self.labels(rows), taught, recorded, extras=self.extras(rows))

    def extras(self, rows: list[Row]) -> dict[str, list[Any]]:  # noqa: ARG002
        """Return what the metrics need of the rows besides their labels."""
        return {}

    def signal(self, model: Any, batch: Batch) -> Signal:
        """Run the model: logits `[batch, outputs]`."""
        return Signal(self.item_logits({"logits": model(**batch.inputs).logits}, batch))


def row_logits(model: Model, batch: Batch) -> Tensor:
    """Let a model answer: float32 logits `[batch, outputs]`."""
    logits = model(batch).logits
    assert logits is not None
    return logits.rows(0, len(logits)).float()


def check_recorded(logits: list[list[float] | None], outputs: int) -> dict[str, list]:
    """Return recorded logits as a column, and the rows that have too many or too few."""
    sizes = [outputs if row is None else len(row) for row in logits]
    bad = [(row, f"{size} teacher_logits for {outputs} outputs") for row, size in enumerate(sizes) if size != outputs]
    return {"teacher_logits": logits} | ({"bad": bad} if bad else {})


def recorded_logits(rows: list[Row]) -> tuple[Tensor | None, Tensor]:
    """Stack the teacher logits of encoded rows `[items, outputs]`; items without any are zeros, and not taught."""
    if "teacher_logits" not in rows[0]:
        return None, torch.ones(len(rows), dtype=torch.bool)
    logits = [row["teacher_logits"] for row in rows]
    taught = torch.tensor([row is not None for row in logits])
    outputs = max((len(row) for row in logits if row is not None), default=1)
    return torch.tensor([row if row is not None else [0.0] * outputs for row in logits]), taught
