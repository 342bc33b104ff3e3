"""Prompts made of rows, as the task would train on them, and rows made of answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from distillkit.data.templates import fields, fill
from distillkit.errors import UserError
from distillkit.generation.backends.base import Answer, Prompt
from distillkit.tasks.base import Row, Task
from distillkit.tasks.chat import CannotEncode, ChatEncoder
from distillkit.tasks.prompts import CHAT, write_prompt
from distillkit.tasks.text import encode_texts

ASSISTANT = "assistant"
CARRIED = {  # column that is answered → columns that its answered rows keep
    "messages": ("tools",),
    "instruction": ("instruction", "input", "system"),
    "prompt": ("prompt",),
    "source": ("source",),
    "text": (),
}
ANSWERS = {"instruction": "completion", "prompt": "completion", "source": "target"}  # column → that of its answer


class PromptReader:
    """Turn rows into prompts.

    Args:
        column: What is answered: `messages`, of which a last turn of the assistant is written anew; an `instruction`,
            with `input` and `system`; a `prompt`; a `source`; or a `text`, whose beginning is continued.
        task: Says how they are encoded.
        tokenizer: Of the teacher; None where the backend has its own.
        chats: Whether the backend is asked by conversations.
        prompt_tokens: Of a `text`, so many tokens are the prompt; without a tokenizer, so many words.
        ask: Text with {columns}, which the backend is asked in place of the column; rows keep the column.
    """

    def __init__(
        self,
        column: str,
        task: Task,
        tokenizer: Any = None,
        chats: bool = False,
        prompt_tokens: int = 32,
        ask: str | None = None,
    ) -> None:
        self.column = column
        self.task = task
        self.tokenizer = tokenizer
        self.chats = chats
        self.prompt_tokens = prompt_tokens
        self.ask = ask
        self.template: str = vars(task).get("template", "plain")
        self.converses = column == "messages" or chats or (column == "instruction" and self.template == CHAT)
        if ask is not None:
            fields(ask, "generate.ask")
        if column == "text" and chats:
            raise UserError(
                "a model that is asked by conversations continues no text",
                where="generate.backend",
                fix="let it take plain text, or map a prompt",
            )
        if column == "messages" and not chats and tokenizer is None:
            raise UserError("conversations need a chat", where="generate.backend", fix="let it take conversations")
        self.encoder = ChatEncoder(tokenizer, task.max_length) if self.converses and tokenizer is not None else None

    def __call__(self, rows: Sequence[Row], draws: Sequence[tuple[int, ...]]) -> list[Prompt | CannotEncode]:
        """Return the prompt of each row, or why there is none.

        Args:
            rows: With the column.
            draws: What seeds each.
        """
        if self.converses:
            return [self._conversation(row, draw) for row, draw in zip(rows, draws, strict=True)]
        texts = [self._text(row) for row in rows]
        continues = self.column == "text"
        encoded = [[]] * len(texts) if self.tokenizer is None else self._encode(texts)
        if continues and self.tokenizer is None:
            texts = [" ".join(text.split()[: self.prompt_tokens]) for text in texts]
        elif continues:
            encoded = [ids[: self.prompt_tokens] for ids in encoded]
            texts = [self.tokenizer.decode(ids, skip_special_tokens=True) for ids in encoded]
        return [
            Prompt(text, ids=ids, continues=continues, draw=draw)
            for text, ids, draw in zip(texts, encoded, draws, strict=True)
        ]

    def row(self, row: Row, prompt: Prompt, answer: Answer) -> Row:
        """Return the row that an answer makes: its columns, and how the answer came to be."""
        kept = {name: row[name] for name in CARRIED[self.column] if name in row}
        if self.column == "messages":
            said = {"role": ASSISTANT, "content": answer.text}
            kept = {"messages": [*_before_answer(row["messages"]), said], **kept}
        else:
            continued = prompt.text + answer.text if self.column == "text" else answer.text
            kept[ANSWERS.get(self.column, "text")] = continued
        return kept | {
            "finished": answer.finished,
            "finish_reason": answer.finish_reason,
            "log_prob": answer.log_prob,
            "answer_tokens": answer.tokens,
        }

    def _text(self, row: Row) -> str:
        if self.ask is not None:
            return str(fill(self.ask, row))
        if self.column == "instruction":
            return write_prompt(self.template, row["instruction"], row.get("input"))
        return row[self.column]

    def _encode(self, texts: list[str]) -> list[list[int]]:
        """Tokenise as the task does, without an end-of-text token behind a prompt."""
        if self.column == "source":
            return encode_texts(texts, None, self.tokenizer, self.task.max_length, "right")["input_ids"]
        return encode_beginnings(texts, self.tokenizer)

    def _conversation(self, row: Row, draw: tuple[int, ...]) -> Prompt | CannotEncode:
        try:
            messages = self._messages(row)
            ids = [] if self.encoder is None else self.encoder.prompt(messages, row.get("tools"))
        except CannotEncode as error:
            return error
        return Prompt(str(messages[-1].get("content") or ""), messages, row.get("tools"), ids, draw=draw)

    def _messages(self, row: Row) -> list[dict[str, Any]]:
        if self.column == "messages":
            messages = _before_answer(row["messages"])
            if not messages:
                raise CannotEncode("no message is there to be answered")
            return messages
        if self.ask is None and self.column == "instruction":
            asked = write_prompt(CHAT, row["instruction"], row.get("input"))
        else:
            asked = self._text(row)
        told = [{"role": "system", "content": row["system"]}] if row.get("system") else []
        return [*told, {"role": "user", "content": asked}]


def encode_beginnings(texts: list[str], tokenizer: Any) -> list[list[int]]:
    """Tokenise texts that are to go on: without an end-of-text token, and never to nothing at all."""
    end, begin = tokenizer.eos_token_id, tokenizer.bos_token_id
    encoded = tokenizer(texts, add_special_tokens=True)["input_ids"]
    encoded = [ids[:-1] if len(ids) > 1 and ids[-1] == end else ids for ids in encoded]
    return [ids or [end if begin is None else begin] for ids in encoded]


def _before_answer(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Leave out what the assistant says last, which is to be written anew."""
    last = len(messages) - 1 if messages and messages[-1].get("role") == ASSISTANT else len(messages)
    return messages[:last]
