"""Leaks: rows of one split whose text also stands in a later one, on which a model is judged."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from distillkit.data.bad_rows import SHOWN, listed
from distillkit.data.cache import TableWriter, cache_folder, cached
from distillkit.data.digest import code_digest, digest, table_digest
from distillkit.data.rows import SPLITS
from distillkit.data.selection import Selection
from distillkit.data.splits import key_columns, keys
from distillkit.errors import UserError

LARGE = 32 << 20  # bytes of text: among more, what was found is remembered
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


def find_leaks(rows: Mapping[str, Selection], cache: str | bool | None = False) -> dict[str, np.ndarray]:
    """Find the rows that also stand in a later split: split → bool `[rows]`, for splits that have such rows.

    Texts are compared in lower case, letters and digits only: of pairs both, of questions about a context the
    context, of instructions instruction and input. What was found among many is remembered by their content.

    Args:
        rows: Of each split.
        cache: As `Handling.cache`.
    """
    present = [rows[split] for split in SPLITS if split in rows]
    if len(present) < 2:
        return {}
    columns = key_columns(sorted(set.intersection(*(set(split.names) for split in present))))
    if not columns:
        return {}
    texts = [split.table.select(columns) for split in present]
    folder = cache_folder(cache) if sum(table.nbytes for table in texts) > LARGE else None
    chosen = (pa.table({"kept": split.kept}) for split in present)
    key = "" if folder is None else digest([table_digest(table) for table in (*texts, *chosen)], code_digest())
    places, _ = cached(folder, key, partial(_search, present, columns))
    leaks = {}
    for position, split in enumerate(split for split in SPLITS if split in rows):
        found = places["row"].filter(pc.equal(places["split"], position)).to_numpy()
        if len(found):
            leaks[split] = np.zeros(len(rows[split]), dtype=bool)
            leaks[split][found] = True
    return leaks


def _search(splits: Sequence[Selection], columns: tuple[str, ...], writer: TableWriter) -> dict[str, Any]:
    """Write the position of a split and the index of a row for each row that also stands in a later split."""
    for position, split in enumerate(splits[:-1]):
        found = np.flatnonzero(Texts.of(splits[position + 1 :], columns).stand_in(split))
        writer.write(pa.table({"split": np.full(len(found), position), "row": found}))
    return {}


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
