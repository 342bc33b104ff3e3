"""Extractive question answering: the items are where an answer starts and where it ends in a window of its context."""

from __future__ import annotations

from collections.abc import Mapping
from math import fsum
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForQuestionAnswering

from distillkit.errors import UserError
from distillkit.metrics.reading import best_threshold, reading_metrics
from distillkit.signals import ABSENT, IGNORE, Batch, DenseLogits, Model, Signal
from distillkit.tasks.base import Answers, Row, Task, attention_mask, pad
from distillkit.tasks.spans import best_spans, join_windows
from distillkit.tasks.text import require_offsets
from distillkit.tasks.windows import ROOM, windows

EXTRAS = ("row", "answers", "text", "base", "first", "starts", "ends", "null")  # of windows: what decoding reads


class QuestionAnswering(Task):
    """Find the answer to a `question` in its `context`; `answers` are {text: […], answer_start: […]}.

    A long context is read in overlapping windows, and the best span of all windows is the answer. Each window has two
    items, start and end, whose classes are the positions of its context and one that stands for "not here".

    Args:
        max_length: Tokens of a window, with question and special tokens.
        stride: Tokens that a window shares with the one before.
        max_question: Tokens of a question; longer ones are cut on the right.
        max_answer: Tokens of an answer.
        n_best: Spans of a window that are considered.
        null_threshold: A question counts as unanswerable where "not here" scores higher than the best span by more
            than this, in logits. None: there is always an answer, and a row without any is refused.
    """

    name = "question_answering"
    required_columns = (("question", "context"),)
    best_metric = "f1"
    metric_columns = ("row", "spans", "null", "answers", "loss", "items", "exact", "f1", "span_f1", "margin")
    has_classes = False
    adds_head = True
    soft_labels = False
    label_column = "answers"
    output_names = ("start_logits", "end_logits")

    def __init__(
        self,
        max_length: int = 384,
        stride: int = 128,
        max_question: int = 64,
        max_answer: int = 30,
        n_best: int = 20,
        null_threshold: float | None = None,
    ) -> None:
        for key, value in (("max_question", max_question), ("max_answer", max_answer), ("n_best", n_best)):
            if value < 1:
                raise UserError(f"must be at least 1, got {value}", where=f"task.{key}")
        if not 0 <= stride < max_length - max_question - ROOM:
            raise UserError(
                f"a window of {max_length} tokens with a question of {max_question} cannot share {stride} with another",
                where="task.stride",
                fix=f"it must be below {max(max_length - max_question - ROOM, 0)}; or raise task.max_length",
            )
        self.max_length = max_length
        self.stride = stride
        self.max_question = max_question
        self.max_answer = max_answer
        self.n_best = n_best
        self.null_threshold = null_threshold
        self.metric_names: tuple[str, ...] = ("f1", "exact", "loss")
        if null_threshold is not None:
            parts = [f"{kind}_{metric}" for kind in ("has_answer", "no_answer") for metric in ("f1", "exact")]
            self.metric_names = (*self.metric_names, *parts, "best_f1", "best_threshold")

    def auto_class(self) -> Any:
        """Return the transformers AutoModel class."""
        return AutoModelForQuestionAnswering

    def prepare(self, config: Any, labels: list[str] | None, trained: bool, key: str) -> None:  # noqa: ARG002
        """Give a model two outputs."""
        if trained and config.num_labels != 2:
            raise UserError(f"the model has {config.num_labels} outputs, not start and end", where=key)
        config.num_labels = 2

    def encode(self, rows: dict[str, list[Any]], tokenizer: Any, label_ids: dict[str, int] | None) -> dict[str, list]:  # noqa: ARG002
        """Tokenise and cut into windows."""
        require_offsets(tokenizer)
        return windows(
            rows["question"],
            rows["context"],
            rows.get("answers") or [None] * len(rows["context"]),
            tokenizer,
            self.max_length,
            self.stride,
            self.max_question,
            always_answered=self.null_threshold is None,
        )

    def collate(self, rows: list[Row], tokenizer: Any) -> Batch:
        """Pad windows."""
        ids = [row["input_ids"] for row in rows]
        inputs = {"input_ids": pad(ids, tokenizer.pad_token_id), "attention_mask": attention_mask(ids)}
        if "token_type_ids" in rows[0]:
            inputs["token_type_ids"] = pad([row["token_type_ids"] for row in rows], 0)
        counted = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
        for index, row in enumerate(rows):
            counted[index, row["first"] : row["first"] + len(row["starts"])] = True
            counted[index, row["null"]] = True
        labels = torch.tensor([row["span"] for row in rows], dtype=torch.int64).flatten()
        taught = torch.ones_like(labels, dtype=torch.bool)
        extras = {name: [row[name] for row in rows] for name in EXTRAS}
        return Batch(inputs, counted, labels, taught, extras=extras)

    def signal(self, model: Any, batch: Batch) -> Signal:
        """Run the model: logits `[2 · windows, length]`, start and end of each window in turn."""
        outputs = model(**batch.inputs)
        return Signal(self.item_logits({name: getattr(outputs, name) for name in self.output_names}, batch))

    def item_logits(self, outputs: Mapping[str, Tensor], batch: Batch) -> DenseLogits:
        """Leave only the positions where an answer may be, and the one for "not here"."""
        both = torch.stack([outputs[name].float() for name in self.output_names], dim=1)
        return DenseLogits(both.masked_fill(~batch.counted.unsqueeze(1), ABSENT).flatten(0, 1))

    def answer(self, model: Model, batch: Batch) -> Answers:
        """Return of each window its best spans, what "not here" scores, and the loss (NaN without a label)."""
        logits = model(batch).logits
        assert logits is not None
        values = logits.rows(0, len(logits)).float()
        losses = functional.cross_entropy(values, batch.labels, reduction="none", ignore_index=IGNORE)
        losses = losses.masked_fill(batch.labels == IGNORE, torch.nan).view(-1, 2)
        start, end = values.view(len(losses), 2, -1).unbind(dim=1)
        null = torch.tensor(batch.extras["null"], device=values.device).unsqueeze(1)
        return {
            "row": batch.extras["row"],
            "spans": best_spans(start, end, batch.extras, self.max_answer, self.n_best),
            "null": (start + end).gather(1, null).squeeze(1).tolist(),
            "answers": batch.extras["answers"],
            "loss": losses.sum(dim=1).tolist(),
            "items": [2] * len(losses),
        }

    def merge(self, answers: Answers) -> Answers:
        """Put the windows of each row together, answer, and compare with what is right."""
        return join_windows(answers, self.null_threshold)

    def metrics(self, answers: Answers) -> dict[str, float]:
        """Return exact match and F1 as SQuAD defines them, and mean cross-entropy, of the rows that have answers."""
        known = [index for index, right in enumerate(answers["answers"]) if right is not None]
        if not known:
            raise UserError("no row has answers to evaluate on", where="dataset.columns.answers")
        exact, f1, loss, items = ([answers[name][i] for i in known] for name in ("exact", "f1", "loss", "items"))
        values = reading_metrics(exact, f1) | {"loss": fsum(loss) / sum(items)}
        if self.null_threshold is None:
            return values
        answerable = [bool(answers["answers"][i]) for i in known]
        for kind, wanted in (("has_answer", True), ("no_answer", False)):
            chosen = [place for place, is_so in enumerate(answerable) if is_so == wanted]
            part = reading_metrics([exact[i] for i in chosen], [f1[i] for i in chosen])
            values |= {f"{kind}_{name}": value for name, value in part.items()}
        span_f1, margin = ([answers[name][i] for i in known] for name in ("span_f1", "margin"))
        values["best_f1"], values["best_threshold"] = best_threshold(span_f1, margin, answerable)
        return values
