"""The opinion of a judge: a model that is asked how good an answer is."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from distillkit.errors import UserError
from distillkit.generation.backends.base import Backend, Sampling, as_prompt
from distillkit.generation.filters.base import Given, Row, answer_of, prompt_of
from distillkit.generation.filters.opinions import Opinions
from distillkit.generation.filters.scores import Score
from distillkit.generation.filters.verifiers import found, pattern
from distillkit.generation.filters.words import hashes

AT_ONCE = 256  # questions that are answered before their answers are kept

QUESTION = """Judge how well the answer below fulfils the request: is it right, complete and clear?
Give one sentence of reasons. Then write on a line of its own "Score: N", where N is from 1 (useless) to 10 (perfect).

[Request]
{prompt}

[Answer]
{answer}
"""


class Judge(Score):
    """Ask a model what it thinks of each answer; an opinion without a number in its place is no score.

    Its opinions are kept in `judged.jsonl`: a question is asked once.

    Args:
        backend: What asks the model, which must be another than the teacher.
        question: What it is asked; {prompt} and {answer} stand for those of the row. None: how right, complete and
            clear the answer is, from 1 to 10.
        extract: Regular expression of the score in its opinion; the last match counts, of it the first group if there
            is one.
        max_new_tokens: Of its opinion.
    """

    def __init__(
        self,
        backend: Backend,
        question: str | None = None,
        extract: str = r"(?i)score\W{0,5}(\d+(?:\.\d+)?)",
        max_new_tokens: int = 256,
    ) -> None:
        if backend.asks is None:
            raise UserError("the judge needs a model of its own", where="backend", fix="such as that of a server")
        self.question = question or QUESTION
        if "{answer}" not in self.question:
            raise UserError("does not ask about {answer}", where="question")
        self.backend = backend
        self.extract = pattern(extract, "extract")
        self.sampling = Sampling(max_new_tokens=max_new_tokens)

    def begin(self, given: Given) -> None:
        """Open the backend, and read what the judge said before."""
        self.writer = self.backend.open(None, None)
        self.opinions = Opinions(given.folder, self._score)

    def __call__(self, rows: list[Row]) -> list[float | None]:
        """Return the judge's scores."""
        questions = [self._ask(row) for row in rows]
        keys = hashes([f"{self.backend.asks} {self.sampling.max_new_tokens}\n{text}" for text in questions]).tolist()
        new = {key: text for key, text in zip(keys, questions, strict=True) if key not in self.opinions.scores}
        for part in batched(new.items(), AT_ONCE):
            answers = self.writer.answer([as_prompt(text) for _, text in part], self.sampling)
            self.opinions.add((key, several[0].text) for (key, _), several in zip(part, answers, strict=True))
        return [self.opinions.scores[key] for key in keys]

    def facts(self) -> dict[str, Any]:
        """Return what the backend says of its work."""
        return self.writer.facts()

    def _ask(self, row: Row) -> str:
        texts = {"{prompt}": prompt_of(row), "{answer}": answer_of(row)}
        return re.sub(r"\{prompt\}|\{answer\}", lambda name: texts[name[0]], self.question)

    def _score(self, opinion: str) -> float | None:
        said = found(self.extract, opinion)
        try:
            return None if said is None else float(said)
        except ValueError:
            return None


def batched(items: Iterable[tuple[int, str]], size: int) -> Iterator[list[tuple[int, str]]]:
    """Yield lists of at most `size` items."""
    rest = iter(items)
    return iter(lambda: list(islice(rest, size)), [])
