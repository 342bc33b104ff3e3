"""Leaks: rows of one split whose text also stands in a later one, on which a model is judged."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from distillkit.data.bad_rows import SHOWN, listed
from distillkit.data.rows import SPLITS
from distillkit.data.selection import Selection
from distillkit.data.splits import key_columns, keys
from distillkit.errors import UserError

ON_LEAK = ("report", "refuse", "drop", "ignore")


def find_leaks(rows: Mapping[str, Selection]) -> dict[str, np.ndarray]:
    """Find the rows that also stand in a later split: split → bool `[rows]`, for splits that have such rows.

    Texts are compared in lower case, letters and digits only: of pairs both, of questions about a context the
    context, of instructions instruction and input.

    Args:
        rows: Of each split.
    """
    present = [split for split in SPLITS if split in rows]
    leaks: dict[str, np.ndarray] = {}
    if len(present) < 2:
        return leaks
    columns = key_columns(sorted(set.intersection(*(set(rows[split].names) for split in present))))
    if not columns:
        return leaks
    for position, split in enumerate(present[:-1]):
        later = [texts for other in present[position + 1 :] for texts in keys(rows[other], columns)]
        known = pc.drop_null(pc.unique(pa.chunked_array(later, pa.string())))
        known = known.filter(pc.match_substring_regex(known, r"\S"))
        found = [pc.is_in(texts, value_set=known) for texts in keys(rows[split], columns)]
        if any(texts.true_count for texts in found):
            leaks[split] = np.concatenate([texts.to_numpy(zero_copy_only=False) for texts in found])
    return leaks


def settle_leaks(leaks: Mapping[str, np.ndarray], where: Callable[[str, int], str], on_leak: str) -> list[str]:
    """Say which rows leak.

    Args:
        leaks: As `find_leaks` returns them.
        where: (split, index) → file and line.
        on_leak: "refuse", "report" or "drop".

    Raises:
        UserError: If leaks are refused.
    """
    notes = []
    for split, found in leaks.items():
        indices, rows = np.flatnonzero(found), len(found)
        count = len(indices)
        shown = listed(dict.fromkeys(indices[:SHOWN].tolist(), ""), count, partial(where, split))
        text = f"{count:,} of {rows:,} {split} rows also stand in a later split: {shown}"
        if on_leak == "refuse":
            raise UserError(text, where="dataset", fix="dataset.on_leak=drop leaves them out of the earlier split")
        notes.append(f"{text}{' (left out)' if on_leak == 'drop' else '; dataset.on_leak=drop leaves them out'}")
    return notes
