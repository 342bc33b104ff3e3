"""What language models write: greedy continuations of the same beginnings, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from distillkit.data.encode import Encoded
from distillkit.signals import Batch, Model
from distillkit.tasks.base import attention_mask, pad

BEGINNING = 16  # tokens of a text that are its beginning, at most half of it


@dataclass(frozen=True)
class Sample:
    """One beginning, and how each model goes on.

    Attributes:
        prompt: The beginning.
        continuations: Model → text.
    """

    prompt: str
    continuations: dict[str, str]


def samples(
    models: Mapping[str, Model], prompts: Sequence[list[int]], tokens: int, tokenizer: Any, device: torch.device
) -> list[Sample]:
    """Let every model go on with every prompt.

    Args:
        models: Causal language models over the same token ids, of any runtime.
        prompts: Token ids.
        tokens: Longest continuation.
        tokenizer: Of the models.
        device: Where they are.
    """
    written = {name: continue_greedily(model, prompts, tokens, tokenizer, device) for name, model in models.items()}
    return [
        Sample(
            tokenizer.decode(prompt, skip_special_tokens=True),
            {name: tokenizer.decode(texts[index], skip_special_tokens=True) for name, texts in written.items()},
        )
        for index, prompt in enumerate(prompts)
    ]


@torch.no_grad()
def continue_greedily(
    model: Model, prompts: Sequence[list[int]], tokens: int, tokenizer: Any, device: torch.device
) -> list[list[int]]:
    """Append the most likely token, one at a time, until the end of the text or `tokens` of them.

    It asks like an evaluation asks, without a cache of keys and values, so that a model of any runtime can be asked.
    """
    texts = [list(prompt) for prompt in prompts]
    for _ in range(tokens):
        open_ = [text for text in texts if text[-1] != tokenizer.eos_token_id]
        if not open_:
            break
        for text, token in zip(open_, _most_likely(model, open_, tokenizer.pad_token_id, device), strict=True):
            text.append(token)
    return [text[len(prompt) :] for text, prompt in zip(texts, prompts, strict=True)]


def as_prompt(text: str, tokenizer: Any) -> list[int]:
    """Tokenise a text that is to go on: without an end-of-text token, which some tokenizers add."""
    ids = tokenizer(text)["input_ids"]
    return ids[:-1] if len(ids) > 1 and ids[-1] == tokenizer.eos_token_id else ids


def beginnings(data: Encoded, count: int, tokens: int) -> list[list[int]]:
    """Return what stands before the first counted token of the first texts; of plain texts, their first tokens.

    Args:
        data: Rows of a causal language model.
        count: How many prompts; fewer if there are fewer texts.
        tokens: Longest prompt: of longer ones the last tokens are kept.
    """
    found = []
    _, firsts = np.unique(data.origins, return_index=True)  # of a long text, its first piece
    for index in firsts[:count].tolist():
        batch = data.batch([index])
        length = int(batch.inputs["attention_mask"][0].sum())
        ids = batch.inputs["input_ids"][0, :length].tolist()
        counted = batch.counted[0].nonzero()
        first = int(counted[0]) + 1 if len(counted) else 1  # the output at t answers for the token at t + 1
        found.append(ids[:first][-tokens:] if first > 1 else ids[: max(1, min(BEGINNING, length // 2))])
    return found


def _most_likely(model: Model, texts: list[list[int]], padding: int, device: torch.device) -> list[int]:
    ids = pad(texts, padding)
    inputs = {"input_ids": ids, "attention_mask": attention_mask(texts)}
    last = torch.zeros_like(ids, dtype=torch.bool)
    last[torch.arange(len(texts)), torch.tensor([len(text) - 1 for text in texts])] = True
    nothing = torch.full((len(texts),), -1)
    logits = model(Batch(inputs, last, nothing, nothing >= 0).to(device)).logits
    assert logits is not None
    return logits.rows(0, len(logits)).argmax(dim=-1).tolist()
