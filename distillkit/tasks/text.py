"""Tokenise texts and pairs of texts, and cut what is too long."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from distillkit.data.rows import check_choice
from distillkit.errors import UserError

SIDES = ("right", "left")
FEWEST = 3  # tokens: of a text and two special ones


def check_lengths(max_length: int, truncation: str) -> None:
    """Refuse lengths and sides that cannot work."""
    if max_length < FEWEST:
        raise UserError(f"must be at least {FEWEST}, got {max_length}", where="task.max_length")
    check_choice(truncation, SIDES, "task.truncation")


def encode_texts(
    texts: list[str], pairs: list[str] | None, tokenizer: Any, max_length: int, truncation: str
) -> dict[str, list]:
    """Tokenise texts, each with its pair if there is one, and cut the longer of the two until both fit.

    Args:
        texts: Of each row.
        pairs: Likewise, or None.
        tokenizer: Of transformers.
        max_length: Tokens of a row, the special ones included.
        truncation: The side on which a text is cut.

    Returns:
        "input_ids", "truncated" and, where the tokenizer gives them, "token_type_ids".
    """
    encoded = tokenizer(texts, pairs, verbose=False)
    names = [name for name in ("input_ids", "token_type_ids") if name in encoded]
    truncated = [len(ids) > max_length for ids in encoded["input_ids"]]
    long = [index for index, is_so in enumerate(truncated) if is_so]
    if long:
        with cutting(tokenizer, truncation):
            chosen = ([texts[i] for i in long], None if pairs is None else [pairs[i] for i in long])
            cut = tokenizer(*chosen, truncation=True, max_length=max_length)
        for name in names:
            for index, values in zip(long, cut[name], strict=True):
                encoded[name][index] = values
    return {name: encoded[name] for name in names} | {"truncated": truncated}


@contextmanager
def cutting(tokenizer: Any, side: str) -> Iterator[None]:
    """Let a tokenizer cut on one side."""
    before = tokenizer.truncation_side
    tokenizer.truncation_side = side
    try:
        yield
    finally:
        tokenizer.truncation_side = before


def require_offsets(tokenizer: Any) -> None:
    """Refuse a tokenizer that does not tell which characters a token stands for."""
    if not tokenizer.is_fast:
        raise UserError(
            f"{type(tokenizer).__name__} does not tell where in the text a token stands",
            where="task",
            fix="use a model with a tokenizer.json",
        )
