"""The examples behind the answers: what a reader sees of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Dataset

from distillkit.data.encode import Encoded
from distillkit.tasks.base import Answers

TRUE = ("label", "labels", "tags", "score", "target", "references", "answers", "completion")  # what was to be found
UNREADABLE = ("teacher_logits", "image")


class Examples:
    """Inputs and labels of the examples of a split, in the order of the answers.

    Args:
        rows: Of the split, as its source gave them.
        encoded: What was made of them.
        tokenizer: Of the models.
        classes: Their names in the order of their ids; None for tasks without.
        answers: Of any model: tell how many examples there are, and perhaps their "row" and "label".
    """

    def __init__(
        self, rows: Dataset, encoded: Encoded, tokenizer: Any, classes: Sequence[str] | None, answers: Answers
    ) -> None:
        self.rows = rows
        self.encoded = encoded
        self.tokenizer = tokenizer
        self.classes = classes
        self.answers = answers
        token_ids = isinstance(next(iter(answers["prediction"]), None), np.ndarray)
        whole = len(self) == len(encoded) and "input_ids" in encoded.rows.column_names
        self.pieces = token_ids and whole and "text" not in answers  # what is read is what is to be said
        self.several = "labels" in answers  # classes of each row, told by 1 and 0

    def __len__(self) -> int:
        return len(self.answers["prediction"])

    def inputs(self, index: int) -> dict[str, Any]:
        """Return what the models read: the text of a piece, or the columns of the row; empty if that is not known."""
        if self.pieces:
            ids = self.encoded.rows[index]["input_ids"]
            return {"text": self.tokenizer.decode(ids, skip_special_tokens=True)}
        row = self._row(index) or {}
        return {name: value for name, value in row.items() if name not in (*TRUE, *UNREADABLE) and value is not None}

    def label(self, index: int) -> Any:
        """Return the true answer, by the names of classes; None if it is not known, or no other than the text."""
        if self.pieces:
            return None
        for column in ("label", "labels"):
            if column in self.answers:
                return self.named(self.answers[column][index])
        row = self._row(index) or {}
        found = next((row[name] for name in TRUE if row.get(name) is not None), None)
        return found["text"] if isinstance(found, dict) and "text" in found else found  # of extracted answers

    def named(self, value: Any) -> Any:
        """Turn an answer into what a reader understands: classes by name, numbers and lists of Python."""
        if self.several and self.classes is not None:
            return [name for name, applies in zip(self.classes, value, strict=True) if applies == 1]
        if isinstance(value, list | tuple | np.ndarray):
            return [self.named(inner) for inner in value]
        if isinstance(value, float | np.floating):
            return float(value)
        if isinstance(value, int | np.integer):
            return self._class(int(value))
        return value

    def _class(self, number: int) -> str | int | None:
        if self.classes is None:
            return number
        return self.classes[number] if 0 <= number < len(self.classes) else None

    def _row(self, index: int) -> dict[str, Any] | None:
        """Return the source's row behind an example; None if that is not known."""
        if "row" in self.answers:
            return self.rows[int(self.answers["row"][index])]
        if len(self) == len(self.encoded):
            known = "row" in self.encoded.rows.column_names
            return self.rows[int(self.encoded.rows[index]["row"])] if known else self.rows[index]
        return self.rows[index] if len(self) == len(self.rows) else None
