"""Language modelling: an item is a position whose next token counts."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM

from distillkit.errors import UserError
from distillkit.metrics.likelihood import bits_per_byte, likelihood_metrics
from distillkit.models.head import head_signal
from distillkit.signals import Batch, Model, Signal
from distillkit.tasks.base import Answers, Row, Task, attention_mask, pad
from distillkit.tasks.chat import CannotEncode, ChatEncoder, find_template
from distillkit.tasks.likelihood import likelihood_answers, read_bytes
from distillkit.tasks.prompts import CHAT, check_template, write_prompt


class CausalLM(Task):
    """Next-token prediction on `text`, on the `completion` that follows a `prompt`, or on what an assistant says.

    A text longer than `max_length` is cut into consecutive pieces; an end-of-text token follows the last one, unless
    the row says `finished: false`. Of a prompt with completion only the completion (and the end-of-text token)
    counts; what exceeds `max_length` is cut on the right. An `instruction` (with or without `input`) makes a prompt.
    Of `messages`, rendered by the tokenizer's chat template (with `tools`, if there are any), what the assistant says
    counts, each of its turns with the token that ends it (`distillkit.tasks.chat`).

    Args:
        max_length: Tokens of a row.
        min_length: Pieces of a text with fewer tokens are left out (at least 2: one token predicts nothing).
        template: How an instruction becomes a prompt: "alpaca", "plain", "chat" (a user's message, answered by the
            assistant) or text with {instruction} and {input}.
        chat_template: In place of the tokenizer's own: "plain", "chatml", a Jinja file or a template. The student's
            tokenizer is saved with it.
        packing: In training, let the texts of a micro-batch share rows as long as the longest of them, without seeing
            each other. Batches are of random lengths then, whatever `train.group_by_length` says.
    """

    name = "causal_lm"
    required_columns = (("messages",), ("instruction", "completion"), ("prompt", "completion"), ("text",))
    prompts = ("messages", "instruction", "prompt", "text")
    best_metric = "loss"
    metric_names = ("loss", "perplexity", "accuracy", "bits_per_byte")
    metric_columns = ("loss", "hits", "items", "bytes")
    has_classes = False

    def __init__(
        self,
        max_length: int = 512,
        min_length: int = 2,
        template: str = "alpaca",
        chat_template: str | None = None,
        packing: bool = False,
    ) -> None:
        if not 2 <= min_length <= max_length:
            raise UserError(
                f"needs 2 ≤ min_length ≤ max_length, got {min_length} and {max_length}", where="task.max_length"
            )
        check_template(template)
        self.max_length = max_length
        self.min_length = min_length
        self.template = template
        self.packing = packing
        self.chat_template = find_template(chat_template)

    def auto_class(self) -> Any:
        """Return the transformers AutoModel class."""
        return AutoModelForCausalLM

    def adapt(self, tokenizer: Any) -> None:
        """Give the tokenizer the chat template."""
        if self.chat_template is not None:
            tokenizer.chat_template = self.chat_template

    def encode(self, rows: dict[str, list[Any]], tokenizer: Any, label_ids: dict[str, int] | None) -> dict[str, list]:  # noqa: ARG002
        """Tokenise. `spans`: `[start, stop, …]`, the tokens to be predicted; `bytes`: of their text, in UTF-8."""
        columns: dict[str, list] = {name: [] for name in ("row", "input_ids", "spans", "bytes", "truncated")}
        if "messages" in rows:
            return columns | self._encode_chats(columns, rows["messages"], rows.get("tools"), tokenizer)
        if {"instruction", "completion"} <= rows.keys():
            return self._encode_instructions(columns, rows, tokenizer)
        if {"prompt", "completion"} <= rows.keys():
            return self._encode_completions(columns, rows["prompt"], rows["completion"], tokenizer)
        end = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
        encoded = tokenizer(rows["text"], add_special_tokens=True)
        for index, finished in enumerate(rows.get("finished") or [None] * len(rows["text"])):
            ids = encoded["input_ids"][index]
            whole = ids + end if ids[-1:] != end and finished is not False else ids
            for start in range(0, len(whole), self.max_length):
                piece = whole[start : start + self.max_length]
                if len(piece) >= self.min_length:
                    size = read_bytes(encoded, index, start + 1, start + len(piece), rows["text"][index], tokenizer)
                    _append(columns, index, piece, [1, len(piece)], size)
        return columns

    def _encode_completions(
        self, columns: dict[str, list], prompts: list[str], completions: list[str], tokenizer: Any
    ) -> dict[str, list]:
        heads = tokenizer(prompts, add_special_tokens=True)["input_ids"]
        tails = tokenizer(completions, add_special_tokens=False)
        end = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
        for index, (head, tail) in enumerate(zip(heads, tails["input_ids"], strict=True)):
            head = head[:-1] if head[-1:] == end else head
            whole = head + tail + end
            ids = whole[: self.max_length]
            first = max(len(head), 1)
            if len(ids) > first:
                bounds = first - len(head), len(ids) - len(head)
                said = read_bytes(tails, index, *bounds, completions[index], tokenizer)
                _append(columns, index, ids, [first, len(ids)], said, len(whole) > len(ids))
        return columns

    def _encode_instructions(self, columns: dict[str, list], rows: dict[str, list[Any]], tokenizer: Any) -> dict:
        inputs = rows.get("input") or [None] * len(rows["instruction"])
        asked = [write_prompt(self.template, *pair) for pair in zip(rows["instruction"], inputs, strict=True)]
        if self.template != CHAT:
            return self._encode_completions(columns, asked, rows["completion"], tokenizer)
        systems = rows.get("system") or [None] * len(asked)
        chats = []
        for system, question, answer in zip(systems, asked, rows["completion"], strict=True):
            turns = [("system", system), ("user", question), ("assistant", answer)]
            chats.append([{"role": role, "content": content} for role, content in turns if content or role == "user"])
        return self._encode_chats(columns, chats, None, tokenizer)

    def _encode_chats(
        self, columns: dict[str, list], chats: list[Any], tools: list[Any] | None, tokenizer: Any
    ) -> dict[str, list]:
        encoder, bad = ChatEncoder(tokenizer, self.max_length), []
        for index, messages in enumerate(chats):
            try:
                chat = encoder(messages, None if tools is None else tools[index])
            except CannotEncode as error:
                bad.append((index, str(error)))
                continue
            if chat.spans:
                _append(columns, index, chat.ids, chat.spans, chat.bytes, chat.truncated)
        return columns | ({"bad": bad} if bad else {})

    def collate(self, rows: list[Row], tokenizer: Any) -> Batch:
        """Pad rows; the output at position t is an item where the token at t + 1 counts. Shifted here and only here."""
        ids = [row["input_ids"] for row in rows]
        tokens = pad(ids, tokenizer.pad_token_id)
        counted = torch.zeros_like(tokens, dtype=torch.bool)
        for index, row in enumerate(rows):
            for start, stop in zip(row["spans"][::2], row["spans"][1::2], strict=True):
                counted[index, max(start, 1) - 1 : stop - 1] = True
        labels = tokens.roll(-1, dims=1)[counted]
        inputs = {"input_ids": tokens, "attention_mask": attention_mask(ids)}
        extras = {"bytes": [row["bytes"] for row in rows]}
        return Batch(inputs, counted, labels, taught=torch.ones_like(labels, dtype=torch.bool), extras=extras)

    def signal(self, model: Any, batch: Batch) -> Signal:
        """Run the model up to its output head: `HeadLogits` over the items."""
        return head_signal(model, batch)

    def answer(self, model: Model, batch: Batch) -> Answers:
        """Return what each row's tokens cost (nats), their bytes, hits, and the most likely tokens."""
        logits = model(batch).logits
        assert logits is not None
        return likelihood_answers(logits, batch) | {"bytes": batch.extras["bytes"]}

    def metrics(self, answers: Answers) -> dict[str, float]:
        """Return nats a token, perplexity, next-token accuracy and bits a byte, over all tokens alike."""
        found = likelihood_metrics(answers["loss"], answers["hits"], answers["items"])
        return found | {"bits_per_byte": bits_per_byte(answers["loss"], answers["bytes"])}


def _append(
    columns: dict[str, list], row: int, ids: list[int], spans: list[int], size: int, truncated: bool = False
) -> None:
    for name, value in zip(
        ("row", "input_ids", "spans", "bytes", "truncated"), (row, ids, spans, size, truncated), strict=True
    ):
        columns[name].append(value)
