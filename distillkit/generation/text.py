"""Text from a teacher: answers to prompts, continuations of texts, targets for sources."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from distillkit.data.rows import Rows
from distillkit.errors import UserError
from distillkit.models.live import LiveModel
from distillkit.tasks.base import Task, attention_mask, pad

ANSWERS = {"prompt": "completion", "source": "target"}  # column → that of its answer


class TeacherText:
    """Let the teacher answer every `prompt`, continue the beginning of every `text`, or write a target for a `source`.

    An answer that was cut off at `max_new_tokens` is no answer: it is left out and counted. A continuation is kept,
    and marked as not finished, so that no end-of-text is learned where there was none.

    Args:
        split: Which rows.
        batch_size: Prompts of a forward pass; prompts of similar length share one.
        max_new_tokens: Longest answer.
        prompt_tokens: Of a `text`, so many tokens are the prompt.
        samples: Answers to each prompt.
        temperature: 0 takes the most likely token (or beam); above, tokens are sampled.
        top_p: Sample among the most likely tokens with this share of the probability.
        beams: Of beam search; 1 for none.
        seed: Of the sampling.
        limit: Use at most so many prompts.
    """

    name = "text"
    required_columns = (("prompt",), ("source",), ("text",))

    def __init__(
        self,
        split: str = "train",
        batch_size: int = 16,
        max_new_tokens: int = 256,
        prompt_tokens: int = 32,
        samples: int = 1,
        temperature: float = 0.7,
        top_p: float = 0.95,
        beams: int = 1,
        seed: int = 0,
        limit: int | None = None,
    ) -> None:
        for key, value in (
            ("batch_size", batch_size),
            ("max_new_tokens", max_new_tokens),
            ("prompt_tokens", prompt_tokens),
            ("samples", samples),
            ("beams", beams),
        ):
            if value < 1:
                raise UserError(f"must be at least 1, got {value}", where=f"generate.{key}")
        if temperature < 0 or not 0 < top_p <= 1:
            raise UserError("needs temperature ≥ 0 and 0 < top_p ≤ 1", where="generate.temperature")
        if samples > 1 and temperature == 0 and beams < samples:
            raise UserError(
                f"{samples} samples at temperature 0 are all the same",
                where="generate.samples",
                fix="raise temperature",
            )
        self.split = split
        self.batch_size = batch_size
        self.max_new_tokens = max_new_tokens
        self.prompt_tokens = prompt_tokens
        self.samples = samples
        self.temperature = temperature
        self.top_p = top_p
        self.beams = beams
        self.seed = seed
        self.limit = limit

    def check(self, task: Task) -> None:
        """Refuse a task whose models write no text."""
        if not task.prompts:
            raise UserError(f"a {task.name} teacher writes no text", where="generate", fix="use generate=soft_labels")

    def total(self, rows: Rows) -> int:
        """Return how many prompts there are."""
        count = len(rows.split(self.split))
        return count if self.limit is None else min(count, self.limit)

    @torch.no_grad()
    def __call__(self, teacher: LiveModel, rows: Rows, share: slice) -> Iterator[list[dict[str, Any]]]:
        """Yield finished rows, batch by batch.

        They are `{prompt, completion, finished}`, `{source, target, finished}`, or of continuations `{text, finished}`.

        Args:
            teacher: A language model, causal or encoder-decoder.
            rows: The dataset.
            share: Which of the prompts this process answers.
        """
        table = rows.split(self.split).select(range(self.total(rows)))
        column = next((name for name in teacher.task.prompts if name in table.column_names), None)
        if column is None:
            wanted = " or ".join(teacher.task.prompts)
            raise UserError(f"a {teacher.task.name} teacher answers a {wanted}", where="dataset.columns")
        prompts = self._prompts(list(table[column])[share], teacher, column)
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index][1]))
        torch.manual_seed(self.seed + (share.start or 0))
        for start in range(0, len(order), self.batch_size):
            chosen = [prompts[index] for index in order[start : start + self.batch_size]]
            answers = self._answer([ids for _, ids in chosen], teacher)
            texts = [text for text, _ in chosen for _ in range(self.samples)]
            yield [_row(column, text, *answer) for text, answer in zip(texts, answers, strict=True)]

    def _prompts(self, texts: list[str], teacher: LiveModel, column: str) -> list[tuple[str, list[int]]]:
        tokenizer, end = teacher.tokenizer, teacher.tokenizer.eos_token_id
        if column == "source":
            encoded = tokenizer(texts, truncation=True, max_length=teacher.task.max_length)["input_ids"]
            return list(zip(texts, encoded, strict=True))
        encoded = tokenizer(texts, add_special_tokens=True)["input_ids"]
        encoded = [ids[:-1] if len(ids) > 1 and ids[-1] == end else ids for ids in encoded]
        if column == "prompt":
            return list(zip(texts, encoded, strict=True))
        heads = [ids[: self.prompt_tokens] for ids in encoded]
        return [(tokenizer.decode(ids, skip_special_tokens=True), ids) for ids in heads if ids]

    def _answer(self, prompts: list[list[int]], teacher: LiveModel) -> list[tuple[str, bool]]:
        """Return text and whether it ended by itself, `samples` for each prompt."""
        tokenizer, start = teacher.tokenizer, 1
        ids, mask = pad(prompts, tokenizer.pad_token_id), attention_mask(prompts)
        if not teacher.model.config.is_encoder_decoder:  # it goes on from the last column: padding comes first
            start = ids.shape[1]
            places = (torch.arange(start) + mask.sum(dim=1, keepdim=True)) % start
            ids, mask = ids.gather(1, places), mask.gather(1, places)
        sampling = {"temperature": self.temperature, "top_p": self.top_p} if self.temperature > 0 else {}
        output: Tensor = teacher.model.generate(
            input_ids=ids.to(teacher.device),
            attention_mask=mask.to(teacher.device),
            max_new_tokens=self.max_new_tokens,
            do_sample=self.temperature > 0,
            num_beams=self.beams,
            num_return_sequences=self.samples,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            **sampling,
        )
        answers = []
        for tokens in output[:, start:].tolist():
            finished = tokenizer.eos_token_id in tokens
            kept = tokens[: tokens.index(tokenizer.eos_token_id)] if finished else tokens
            answers.append((tokenizer.decode(kept, skip_special_tokens=True), finished))
        return answers


def _row(column: str, prompt: str, answer: str, finished: bool) -> dict[str, Any]:
    if column in ANSWERS:
        return {column: prompt, ANSWERS[column]: answer, "finished": finished}
    return {"text": prompt + answer, "finished": finished}
