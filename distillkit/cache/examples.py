"""Some rows of a store as its teacher read them: whoever encodes rows in another way is told at once, and how."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset

from distillkit.data.digest import table_digest
from distillkit.data.encode import Encoded
from distillkit.data.encoder import Encoder

EACH = 16  # rows at equal distances, and of the longest
SHOWN = 6  # tokens of either end

Example = Mapping[str, Any]


def examples_of(encoder: Encoder, rows: Dataset, data: Encoded, columns: Sequence[str]) -> list[Example]:
    """Describe some rows of a split, among them those that gave the most tokens.

    Args:
        encoder: Of the rows.
        rows: The split.
        data: What they were encoded as.
        columns: Of the encoded rows that are compared.
    """
    spread = np.linspace(0, len(data) - 1, EACH).round().astype(np.int64)
    longest = np.argsort(-data.lengths, kind="stable")[:EACH]
    chosen = np.unique(data.origins[np.concatenate([spread, longest])])
    return [_describe(encoder, rows, row, columns) for row in chosen.tolist()]


def difference(
    encoder: Encoder, rows: Dataset, examples: Sequence[Example], columns: Sequence[str]
) -> tuple[int, str] | None:
    """Find a row that is encoded in another way than it was, and say in what it differs; None if there is none.

    Args:
        encoder: Of the rows now.
        rows: The split that the examples are of.
        examples: As `examples_of` described them.
        columns: Likewise.
    """
    for theirs in examples:
        ours = _describe(encoder, rows, theirs["row"], columns)
        if ours["digest"] == theirs["digest"]:
            continue
        for part, now, then in (("start", "begins", "began"), ("end", "ends", "ended")):
            if ours[part] != theirs[part]:
                here, there = (f"with '{one[part]}' ({one['tokens']:,} tokens)" for one in (ours, theirs))
                return theirs["row"], f"{now} {here}, and {then} {there}"
        if ours["tokens"] != theirs["tokens"]:
            return theirs["row"], f"has {ours['tokens']:,} tokens, and had {theirs['tokens']:,}"
        return theirs["row"], "differs in its middle, in what of it counts, or in other columns"
    return None


def _describe(encoder: Encoder, rows: Dataset, row: int, columns: Sequence[str]) -> Example:
    """Encode a row by itself."""
    table = encoder(rows[row : row + 1], [row]).table
    read = table_digest(table.select(list(columns))) if set(columns) <= set(table.column_names) else None
    texts = table["input_ids"].to_pylist() if "input_ids" in table.column_names else []
    ids = [token for text in texts for token in text]
    start, end = (encoder.tokenizer.decode(part) if part else "" for part in (ids[:SHOWN], ids[-SHOWN:]))
    return {"row": row, "digest": read, "tokens": len(ids), "start": start, "end": end}
