"""Leaks: rows of one split whose text also stands in a later one, on which a model is judged."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Texts:
    """What the rows of some splits say.

    Attributes:
        columns: That identify a row; see `key_columns`.
        known: Their texts, in lower case, letters and digits only; none twice, none empty.
    """

    columns: tuple[str, ...]
    known: pa.Array

    @classmethod
    def of(cls, splits: Sequence[Selection], columns: tuple[str, ...]) -> Texts:
        """Collect the texts of splits."""
        texts = [texts for split in splits for texts in keys(split, columns)]
        known = pc.drop_null(pc.unique(pa.chunked_array(texts, pa.string())))
        return cls(columns, known.filter(pc.match_substring_regex(known, r"\S")))

    def stand_in(self, rows: Selection) -> np.ndarray:
        """Tell which rows say one of them: bool `[rows]`."""
        found = [pc.is_in(texts, value_set=self.known) for texts in keys(rows, self.columns)]
        return np.concatenate([np.zeros(0, bool), *(texts.to_numpy(zero_copy_only=False) for texts in found)])


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
        later = Texts.of([rows[other] for other in present[position + 1 :]], columns)
        found = later.stand_in(rows[split])
        if found.any():
            leaks[split] = found
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
