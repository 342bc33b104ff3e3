"""Language modelling: an item is a position whose next token counts."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM

from distillkit.errors import UserError
from distillkit.metrics.likelihood import likelihood_metrics
from distillkit.models.head import head_signal
from distillkit.signals import Batch, Model, Signal
from distillkit.tasks.base import Answers, Row, Task, attention_mask, pad
from distillkit.tasks.likelihood import likelihood_answers


class CausalLM(Task):
    """Next-token prediction on `text`, or on the `completion` that follows a `prompt`.

    A text longer than `max_length` is cut into consecutive pieces; an end-of-text token follows the last one, unless
    the row says `finished: false`. Of a prompt with completion only the
    completion (and the end-of-text token) counts; what exceeds `max_length` is cut on the right.

    Args:
        max_length: Tokens of a row.
        min_length: Pieces of fewer tokens are left out (at least 2: one token predicts nothing).
    """

    name = "causal_lm"
    required_columns = (("text",), ("prompt", "completion"))
    best_metric = "loss"
    metric_names = ("loss", "perplexity", "accuracy")
    metric_columns = ("loss", "hits", "items")
    has_classes = False

    def __init__(self, max_length: int = 512, min_length: int = 2) -> None:
        if not 2 <= min_length <= max_length:
            raise UserError(
                f"needs 2 ≤ min_length ≤ max_length, got {min_length} and {max_length}", where="task.max_length"
            )
        self.max_length = max_length
        self.min_length = min_length

    def auto_class(self) -> Any:
        """Return the transformers AutoModel class."""
        return AutoModelForCausalLM

    def encode(self, rows: dict[str, list[Any]], tokenizer: Any, label_ids: dict[str, int] | None) -> dict[str, list]:  # noqa: ARG002
        """Tokenise; `counts_from` is the first position whose token is to be predicted."""
        if "prompt" in rows:
            return self._encode_completions(rows["prompt"], rows["completion"], tokenizer)
        columns: dict[str, list] = {"input_ids": [], "counts_from": []}
        end = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
        encoded = tokenizer(rows["text"], add_special_tokens=True)["input_ids"]
        for ids, finished in zip(encoded, rows.get("finished") or [None] * len(encoded), strict=True):
            ids = ids + end if ids[-1:] != end and finished is not False else ids
            for start in range(0, len(ids), self.max_length):
                piece = ids[start : start + self.max_length]
                if len(piece) >= self.min_length:
                    columns["input_ids"].append(piece)
                    columns["counts_from"].append(1)
        return columns

    def _encode_completions(self, prompts: list[str], completions: list[str], tokenizer: Any) -> dict[str, list]:
        columns: dict[str, list] = {"input_ids": [], "counts_from": []}
        heads = tokenizer(prompts, add_special_tokens=True)["input_ids"]
        tails = tokenizer(completions, add_special_tokens=False)["input_ids"]
        end = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
        for head, tail in zip(heads, tails, strict=True):
            head = head[:-1] if head[-1:] == end else head
            ids = (head + tail + end)[: self.max_length]
            if len(ids) > max(len(head), 1):
                columns["input_ids"].append(ids)
                columns["counts_from"].append(max(len(head), 1))
        return columns

    def collate(self, rows: list[Row], tokenizer: Any) -> Batch:
        """Pad rows; the output at position t is an item where the token at t + 1 counts. Shifted here and only here."""
        ids = [row["input_ids"] for row in rows]
        tokens = pad(ids, tokenizer.pad_token_id)
        position = torch.arange(1, tokens.shape[1])
        first = torch.tensor([row["counts_from"] for row in rows]).unsqueeze(1)
        last = torch.tensor([len(row) for row in ids]).unsqueeze(1)
        counted = torch.zeros_like(tokens, dtype=torch.bool)
        counted[:, :-1] = (position >= first) & (position < last)
        labels = tokens.roll(-1, dims=1)[counted]
        inputs = {"input_ids": tokens, "attention_mask": attention_mask(ids)}
        return Batch(inputs, counted, labels, taught=torch.ones_like(labels, dtype=torch.bool))

    def signal(self, model: Any, batch: Batch) -> Signal:
        """Run the model up to its output head: `HeadLogits` over the items."""
        return head_signal(model, batch)

    def answer(self, model: Model, batch: Batch) -> Answers:
        """Return what each row's tokens cost (nats), hits, and the most likely tokens."""
        logits = model(batch).logits
        assert logits is not None
        return likelihood_answers(logits, batch)

    def metrics(self, answers: Answers) -> dict[str, float]:
        """Return nats a token, perplexity and next-token accuracy, over all tokens alike."""
        return likelihood_metrics(answers["loss"], answers["hits"], answers["items"])
