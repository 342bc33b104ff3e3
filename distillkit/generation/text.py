"""Text from a teacher: answers to prompts and conversations, continuations of texts, targets for sources."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset

from distillkit.data.bad_rows import settle
from distillkit.data.checks import pieces
from distillkit.data.columns import problems
from distillkit.data.rows import Rows
from distillkit.errors import UserError
from distillkit.generation.backends.base import Backend, Prompt, Sampling, Writer
from distillkit.generation.backends.local import Transformers
from distillkit.generation.base import SHARD_ROWS, at_least_one
from distillkit.generation.filters.base import SOURCE, Filter
from distillkit.generation.prompts import PromptReader
from distillkit.models.live import LiveModel
from distillkit.reporting.console import notice
from distillkit.tasks.base import Task


class TeacherText:
    """Let the teacher answer: `messages`, an `instruction`, a `prompt`; translate or sum up a `source`; go on a `text`.

    The first of these columns that the rows have, and that the task's models answer, is what it is asked. Of a
    conversation that ends with an answer, that answer is written anew.

    Args:
        split: Which rows.
        backend: What asks the teacher; None: transformers, in this process.
        max_new_tokens: Longest answer.
        prompt_tokens: Of a `text`, so many tokens are the prompt.
        ask: Text with {columns}, which the teacher is asked in place of the column; rows keep the column. For a
            general model that has to be told what to do.
        samples: Answers to each prompt.
        temperature: 0 takes the most likely token (or beam); above, tokens are drawn.
        top_p: Draw among the most likely tokens with this share of the probability.
        top_k: Draw among so many most likely tokens; None for all.
        beams: Of beam search; 1 for none.
        stop: Texts that end an answer, beside the token that does.
        seed: Of the draws. Each answer has its own, whatever else is written at the same time.
        limit: Use at most so many prompts.
        filters: name → filter that the rows pass through.
        shard_rows: Prompts whose answers are written together, and are lost at most if the run is killed.
    """

    name = "text"
    required_columns = (("messages",), ("instruction",), ("prompt",), ("source",), ("text",))

    def __init__(
        self,
        split: str = "train",
        backend: Backend | None = None,
        max_new_tokens: int = 256,
        prompt_tokens: int = 32,
        ask: str | None = None,
        samples: int = 1,
        temperature: float = 0.7,
        top_p: float = 0.95,
        top_k: int | None = None,
        beams: int = 1,
        stop: list[str] | None = None,
        seed: int = 0,
        limit: int | None = None,
        filters: dict[str, Filter | None] | None = None,
        shard_rows: int = SHARD_ROWS,
    ) -> None:
        self.split = split
        self.backend: Backend = backend or Transformers()
        self.sampling = Sampling(max_new_tokens, samples, temperature, top_p, top_k, beams, tuple(stop or ()))
        self.prompt_tokens = at_least_one(prompt_tokens, "generate.prompt_tokens")
        self.ask = ask
        self.seed = seed
        self.limit = None if limit is None else at_least_one(limit, "generate.limit")
        self.filters: Mapping[str, Filter | None] = filters or {}
        self.shard_rows = at_least_one(shard_rows, "generate.shard_rows")

    @property
    def asks(self) -> str | None:
        """The model that is asked in place of the config's teacher."""
        return self.backend.asks

    def check(self, task: Task) -> None:
        """Refuse a task whose models write no text."""
        if not task.prompts:
            raise UserError(f"a {task.name} teacher writes no text", where="generate", fix="use generate=soft_labels")

    def total(self, rows: Rows) -> int:
        """Return how many prompts there are."""
        count = len(rows.split(self.split))
        return count if self.limit is None else min(count, self.limit)

    def prepare(self, teacher: LiveModel | None, rows: Rows, task: Task) -> AskedForText:
        """Pick the column of the prompts, look for bad rows, and get the backend ready.

        Args:
            teacher: A language model, causal or encoder-decoder; None if the backend asks another.
            rows: The dataset.
            task: Of the teacher.
        """
        table = rows.split(self.split)
        column = next((name for name in task.prompts if name in table.column_names), None)
        if column is None:
            wanted = " or ".join(task.prompts)
            raise UserError(f"a {task.name} teacher answers a {wanted}", where="dataset.columns")
        total = self.total(rows)
        bad = _find_bad(table, column, total)
        note = settle(bad, total, partial(rows.where, self.split), rows.handling.on_bad_row, self.split)
        if note is not None:
            notice(note)
        writer = self.backend.open(teacher, task)
        reader = PromptReader(column, task, writer.tokenizer, self.backend.chats, self.prompt_tokens, self.ask)
        return AskedForText(self, rows, table, reader, writer, frozenset(bad))


def _find_bad(table: Dataset, column: str, total: int) -> dict[int, str]:
    bad: dict[int, str] = {}
    for start, piece in pieces(table.select_columns([column]).select(range(total))):
        for problem in problems(column, piece[column], required=True):
            for index in np.flatnonzero(pc.fill_null(problem.rows, False).to_numpy()):
                bad.setdefault(start + int(index), problem.reason)
    return bad


@dataclass(frozen=True)
class AskedForText:
    """What answers, and what it is asked.

    Attributes:
        generator: With the settings.
        rows: The dataset.
        table: The split.
        reader: Of its prompts.
        writer: What answers.
        bad: Rows that are skipped.
    """

    generator: TeacherText
    rows: Rows
    table: Dataset
    reader: PromptReader
    writer: Writer
    bad: frozenset[int]

    def answer(self, start: int, stop: int) -> list[dict[str, Any]]:
        """Return the answers to the prompts `[start, stop)`, in order."""
        indices = [index for index in range(start, stop) if index not in self.bad]
        rows = list(self.table.select(indices)) if indices else []
        found = self.reader(rows, [(self.generator.seed, index) for index in indices])
        asked = [
            (index, row, prompt)
            for index, row, prompt in zip(indices, rows, found, strict=True)
            if isinstance(prompt, Prompt)
        ]
        self._settle(
            {index: str(one) for index, one in zip(indices, found, strict=True) if not isinstance(one, Prompt)}
        )
        answers = self.writer.answer([prompt for *_, prompt in asked], self.generator.sampling)
        return [
            self.reader.row(row, prompt, answer) | {SOURCE: index}
            for (index, row, prompt), several in zip(asked, answers, strict=True)
            for answer in several
        ]

    def facts(self) -> dict[str, Any]:
        """Return what the report says of the backend's work."""
        return self.writer.facts()

    def _settle(self, bad: dict[int, str]) -> None:
        split, handling = self.generator.split, self.rows.handling
        note = settle(bad, len(self.table), partial(self.rows.where, split), handling.on_bad_row, split, exact=False)
        if note is not None:
            notice(note)
