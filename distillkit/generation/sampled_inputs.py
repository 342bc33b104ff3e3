"""Texts that a language model makes up, from nothing or by the example of some rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Dataset

from distillkit.data.selection import all_but
from distillkit.errors import UserError
from distillkit.generation.backends.base import Backend, Prompt, Sampling, Writer
from distillkit.generation.base import at_least_one
from distillkit.models.live import LiveModel
from distillkit.tasks.base import Row

TOLD = (
    "Here are some texts, one a line:\n\n{examples}\n\nWrite one more text of the same kind, about something else. "
    "Answer with the text alone, on one line."
)


class SampledInputs:
    """Let a causal language model write texts like those of the rows.

    A model that goes on with text sees some rows, each on a line, and writes the next line; without examples, it
    begins from nothing. A model that is asked by conversations is told what to do.

    Args:
        backend: The language model, which must be another than the teacher.
        count: How many texts.
        shots: Rows that each one is shown, drawn anew for each; 0 for none.
        max_new_tokens: Longest text.
        temperature: Of the draws.
        top_p: Draw among the most likely tokens with this share of the probability.
        told: What a model that is asked by conversations is told; {examples} stands for the rows.
    """

    of_rows = False

    def __init__(
        self,
        backend: Backend,
        count: int = 1000,
        shots: int = 8,
        max_new_tokens: int = 64,
        temperature: float = 1.0,
        top_p: float = 0.95,
        told: str = TOLD,
    ) -> None:
        if backend.asks is None:
            raise UserError("needs a language model of its own", where="backend", fix="set generate.maker.backend.path")
        if shots < 0:
            raise UserError(f"must be at least 0, got {shots}", where="shots")
        if temperature == 0:
            raise UserError("all texts would be alike at 0", where="temperature")
        if shots == 0 and backend.chats:
            raise UserError("a model that is asked by conversations needs examples", where="shots")
        self.backend = backend
        self.count = at_least_one(count, "count")
        self.shots = shots
        self.sampling = Sampling(max_new_tokens, 1, temperature, top_p, stop=("\n",) if not backend.chats else ())
        self.told = told

    def total(self, table: Dataset) -> int:  # noqa: ARG002
        """Return how many texts are made."""
        return self.count

    def open(self, table: Dataset, bad: frozenset[int], seed: int, teacher: LiveModel) -> SampledTexts:  # noqa: ARG002
        """Load the language model."""
        if "text_pair" in table.column_names and any(pair is not None for pair in table["text_pair"]):
            raise UserError(
                "pairs of texts are not made up", where="generate.maker", fix="use generate/maker=substitution"
            )
        usable = all_but(bad, len(table))
        return SampledTexts(self, table.select(usable), seed, self.backend.open(None, None))


class SampledTexts:
    """A language model, and the rows that it is shown.

    Args:
        settings: What is made.
        table: The rows.
        seed: Of the draws.
        writer: The language model.
    """

    def __init__(self, settings: SampledInputs, table: Dataset, seed: int, writer: Writer) -> None:
        self.settings = settings
        self.table = table
        self.seed = seed
        self.writer = writer

    def make(self, numbers: Sequence[int]) -> list[Row]:
        """Return one text for each number, without those that the model did not end."""
        prompts = [self._prompt(number) for number in numbers]
        answers = self.writer.answer(prompts, self.settings.sampling)
        texts = [answer.text.strip().partition("\n")[0] for (answer,) in answers if answer.finished]
        return [{"text": text} for text in texts if text]

    def facts(self) -> dict[str, Any]:
        """Return what the backend tells of its work."""
        return self.writer.facts()

    def _prompt(self, number: int) -> Prompt:
        random = np.random.default_rng(np.random.SeedSequence((self.seed, number, 1)))
        count = min(self.settings.shots, len(self.table))
        chosen = random.choice(len(self.table), count, replace=False).tolist()
        examples = "".join(f"{' '.join(self.table[index]['text'].split())}\n" for index in chosen)
        draw = (self.seed, number)
        if not self.settings.backend.chats:
            return Prompt(examples, draw=draw)
        told = self.settings.told.replace("{examples}", examples.rstrip())
        return Prompt(told, [{"role": "user", "content": told}], draw=draw)
