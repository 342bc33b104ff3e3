"""Choosing rows by hash or at random: a validation split out of the training rows, and subsamples."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from distillkit.data.columns import KEYS
from distillkit.data.rows import SPLITS
from distillkit.data.selection import Selection
from distillkit.errors import UserError, did_you_mean

Amount = int | float | Mapping[str, int | float | None] | None  # for every split alike, or by split


def key_columns(names: Sequence[str]) -> tuple[str, ...]:
    """Return the columns whose text identifies a row; none if there are no such columns."""
    for group in KEYS:
        if group[0] in names:
            return tuple(name for name in group if name in names)
    return ()


def keys(rows: Selection, columns: Sequence[str]) -> Iterator[pa.Array]:
    """Yield what rows are compared by, batch by batch: their text in lower case, letters and digits only.

    Args:
        rows: To compare.
        columns: As `key_columns` names them.
    """
    for batch in rows.batches(columns):
        texts = [_normal(_as_text(batch[column])) for column in columns]
        yield texts[0] if len(texts) == 1 else pc.binary_join_element_wise(*texts, "\n", null_handling="replace")


def shares(texts: Iterable[str | None], rows: int, salt: str) -> np.ndarray:
    """Hash texts to float `[rows]` in [0, 1): equal ones alike, whatever stands beside them."""
    return np.fromiter((_share(text or "", salt) for text in texts), dtype=np.float64, count=rows)


def _share(text: str, salt: str) -> float:
    digest = hashlib.blake2b(text.encode(), digest_size=6, key=salt.encode()).digest()
    return int.from_bytes(digest, "big") / (1 << 48)


def held_out(rows: Selection, share: float) -> np.ndarray:
    """Choose the rows of a validation split: bool `[rows]`. Rows of equal text stay together.

    Raises:
        UserError: If the rows have no text, or all fall on one side.
    """
    columns = key_columns(rows.names)
    where = "dataset.validation_share"
    if not columns:
        raise UserError("the rows have no text to split them by", where=where, fix="name a validation split")
    texts = (text for batch in keys(rows, columns) for text in batch.to_pylist())
    chosen = shares(texts, len(rows), "validation") < share
    if chosen.all() or not chosen.any():
        side = "all" if chosen.all() else "none"
        raise UserError(f"{side} of the {len(chosen):,} training rows would be validation rows", where=where)
    return chosen


def fraction_of(rows: Selection, fraction: float) -> np.ndarray:
    """Choose a share of the rows by their content: bool `[rows]`. Neither order nor other rows matter."""
    each = (row for batch in rows.batches(rows.names) for row in batch.to_pylist())
    return shares((json.dumps(row, default=str, sort_keys=True) for row in each), len(rows), "fraction") < fraction


def sample(rows: int, limit: int | None) -> np.ndarray:
    """Draw at most `limit` of `rows` indices with a fixed seed, in ascending order."""
    if limit is None or limit >= rows:
        return np.arange(rows)
    return np.sort(np.random.default_rng(0).choice(rows, size=limit, replace=False))


def check_amounts(limit: Amount, fraction: Amount, validation_share: float | None) -> None:
    """Refuse amounts that leave no rows, by their key."""
    for split, rows in by_split(limit, "dataset.limit").items():
        if rows is not None and (rows < 1 or rows != int(rows)):
            where = "dataset.limit" if isinstance(limit, int | float) else f"dataset.limit.{split}"
            raise UserError(f"{rows} rows are none", where=where, fix="give at least 1, or null for all rows")
    for split, share in by_split(fraction, "dataset.fraction").items():
        if share is not None and not 0 < share <= 1:
            where = "dataset.fraction" if isinstance(fraction, int | float) else f"dataset.fraction.{split}"
            raise UserError(f"must be above 0 and at most 1, got {share}", where=where)
    if validation_share is not None and not 0 < validation_share < 1:
        raise UserError(f"must be between 0 and 1, got {validation_share}", where="dataset.validation_share")


def by_split(amount: Amount, key: str) -> dict[str, int | float | None]:
    """Return the amount for each split."""
    if not isinstance(amount, Mapping):
        return dict.fromkeys(SPLITS, amount)
    for split in amount:
        if split not in SPLITS:
            raise UserError(f"unknown split '{split}'", where=key, fix=did_you_mean(split, list(SPLITS)))
    return {split: amount.get(split) for split in SPLITS}


def _normal(texts: pa.Array) -> pa.Array:
    return pc.replace_substring_regex(pc.utf8_lower(texts), r"[^\p{L}\p{N}]+", "")


def _as_text(column: pa.Array) -> pa.Array:
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return column.cast(pa.string())
    if pa.types.is_list(column.type) and pa.types.is_string(column.type.value_type):
        return pc.binary_join(column, " ")
    texts = [None if value is None else _said(value) for value in column.to_pylist()]
    return pa.array(texts, pa.string())


def _said(value: object) -> str:
    """Return what identifies a conversation, which is everything but the answers; of another value, its JSON."""
    if isinstance(value, list) and all(isinstance(turn, dict) for turn in value):
        return "\n".join(str(turn.get("content")) for turn in value if turn.get("role") != "assistant")
    return json.dumps(value, default=str)
