"""Encode the rows of a window, in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset

from distillkit.data.bad_rows import settle
from distillkit.data.cache import TableWriter
from distillkit.data.checks import find_bad_rows
from distillkit.data.encode import Counts, Encoded
from distillkit.data.encoder import Encoder, encode_pieces
from distillkit.data.rows import Window
from distillkit.data.selection import all_but
from distillkit.signals import Batch


@dataclass(frozen=True)
class EncodedWindow:
    """A window that can be trained on.

    Attributes:
        data: Its rows; their counts are of what was read for them.
        start: Records of the source before it.
        end: Records up to its end.
        notes: Subject → what users should know.
    """

    data: Encoded
    start: int
    end: int
    notes: dict[str, str]


@dataclass(frozen=True)
class WindowEncoder:
    """Encodes windows.

    Attributes:
        encoder: Of rows, with a tokenizer of its own, since one serves one thread at a time.
        collate: Encoded rows → batch.
        labels: Class names in the order of their ids.
        on_bad_row: "refuse" or "skip".
        columns: Which every window has; null where its files do not have them.
    """

    encoder: Encoder
    collate: Callable[[list[dict[str, Any]]], Batch]
    labels: list[str] | None
    on_bad_row: str
    columns: frozenset[str]

    def __call__(self, window: Window) -> EncodedWindow:
        """Encode a window, in memory.

        Raises:
            UserError: If bad rows are refused.
        """
        table, rows = window.table, len(window.table)
        for name in self.columns - set(table.column_names):  # what other files have
            table = table.add_column(name, [None] * rows)
        bad = find_bad_rows(table, self.encoder.task, self.labels) if rows else {}
        writer, left_out, truncated = TableWriter(None), 0, 0
        for piece in encode_pieces(self.encoder, table, all_but(bad, rows), workers=0):
            bad |= piece.bad
            left_out += piece.left_out
            truncated += piece.truncated
            if piece.table.num_rows:
                writer.write(piece.table)
        note = settle(bad, rows, window.place, self.on_bad_row, window.name, whole=False)
        notes = dict(window.notes) | ({} if note is None else {"unusable": note})
        encoded = writer.finish() if writer.rows else pa.table({"length": pa.array([], pa.int64())})
        counts = Counts(window.end - window.start, encoded.num_rows, window.bad + len(bad), left_out, truncated)
        lengths = encoded["length"].to_numpy().astype(np.int64)
        encoded = encoded.drop_columns(["length"])
        if "row" in encoded.column_names:
            records = pa.array(window.records[encoded["row"].to_numpy()])
            encoded = encoded.set_column(encoded.column_names.index("row"), "row", records)
        kept = Dataset(encoded, fingerprint="window")
        return EncodedWindow(Encoded(kept, lengths, self.collate, counts), window.start, window.end, notes)
