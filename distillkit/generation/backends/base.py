"""What a backend is asked and what it answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from distillkit.errors import UserError
from distillkit.models.live import LiveModel
from distillkit.tasks.base import Task

STOP, LENGTH = "stop", "length"  # finish reasons: the model ended its answer, or it was cut off


@dataclass(frozen=True)
class Prompt:
    """What is to be answered.

    Attributes:
        text: As text.
        messages: As a conversation: [{"role": str, "content": str}]; None if the text is to be gone on with.
        tools: Functions that the model may call, as its chat template or server takes them.
        ids: As tokens of the teacher; empty where a backend has its own tokenizer.
        continues: The answer continues the text, so that a space between the two belongs to it.
        draw: Whole numbers that seed what is random about its answers: nothing else does.
    """

    text: str
    messages: list[dict[str, Any]] | None = None
    tools: Any = None
    ids: list[int] = field(default_factory=list)
    continues: bool = False
    draw: tuple[int, ...] = ()


@dataclass(frozen=True)
class Sampling:
    """How answers are chosen.

    Attributes:
        max_new_tokens: Longest answer.
        samples: Answers to each prompt.
        temperature: 0 takes the most likely token (or beam); above, tokens are drawn.
        top_p: Draw among the most likely tokens with this share of the probability.
        top_k: Draw among so many most likely tokens; None for all.
        beams: Of beam search; 1 for none.
        stop: Texts that end an answer and do not belong to it.
    """

    max_new_tokens: int = 256
    samples: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int | None = None
    beams: int = 1
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for key in ("max_new_tokens", "samples", "beams"):
            if getattr(self, key) < 1:
                raise UserError(f"must be at least 1, got {getattr(self, key)}", where=f"generate.{key}")
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            raise UserError("needs temperature ≥ 0 and 0 < top_p ≤ 1", where="generate.temperature")
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"must be at least 1 or null, got {self.top_k}", where="generate.top_k")
        if self.beams > 1 and self.temperature > 0:
            raise UserError("beam search draws nothing", where="generate.beams", fix="set generate.temperature=0")
        if self.samples > max(1, self.beams) and self.temperature == 0:
            raise UserError(
                f"{self.samples} samples at temperature 0 are all the same",
                where="generate.samples",
                fix="raise generate.temperature",
            )


@dataclass(frozen=True)
class Answer:
    """One answer.

    Attributes:
        text: Without what ended it.
        finish_reason: "stop" if the model ended it, "length" if it was cut off, or a server's own word.
        tokens: How many tokens were chosen, the one that ends the text included; None if the backend does not say.
        log_prob: Natural log-probability of these tokens given the prompt, at temperature 1 and among all tokens
            (after penalties that the model's own generation settings ask for); None if the backend does not say.
    """

    text: str
    finish_reason: str
    tokens: int | None = None
    log_prob: float | None = None

    @property
    def finished(self) -> bool:
        """Whether the model ended it."""
        return self.finish_reason == STOP


class Writer(Protocol):
    """A backend that is ready to answer."""

    @property
    def tokenizer(self) -> Any:
        """Of a model that is asked by tokens; None if the backend takes text or conversations."""
        ...

    def answer(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Answer]]:
        """Answer prompts: for each, in their order, `sampling.samples` answers."""
        ...

    def facts(self) -> dict[str, Any]:
        """Return what there is to tell of the work so far, such as requests, tokens and cost."""
        ...


class Backend(Protocol):
    """A `backend` node: a cheap constructor with the YAML arguments, and what answers.

    Attributes:
        asks: The model that it asks; None for the teacher of the config.
        chats: Whether it is asked by conversations, which it renders itself, rather than by text or tokens.
    """

    asks: str | None
    chats: bool

    def open(self, teacher: LiveModel | None, task: Task | None) -> Writer:
        """Get ready.

        Args:
            teacher: In evaluation mode; None if the backend asks another model.
            task: Of the config; None for a model that judges or rewrites text.
        """
        ...


def as_prompt(text: str) -> Prompt:
    """Ask by a text: of a model that chats, as a user's message."""
    return Prompt(text, [{"role": "user", "content": text}])
