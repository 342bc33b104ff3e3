"""Local files and folders as a dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from distillkit.data.columns import COLUMNS
from distillkit.data.folders import find_files, find_splits, read_splits
from distillkit.data.prepare import Preparation
from distillkit.data.rows import SPLITS, Handling, Rows, Streaming
from distillkit.errors import UserError


class FileDataset:
    """Read local files: a row is a line (JSONL, text), an object (JSON) or a record (CSV, TSV, Parquet, Arrow).

    Values in CSV and TSV are text, whatever they look like. A blank line is no row. Text formats may be gzipped.

    Args:
        train: A file, a glob pattern or a list of them; the ending decides the format.
        validation: Likewise.
        test: Likewise.
        path: A folder: splits that are not named are its files (or folders) `train`, `validation` and `test`, where
            they are there, and names are looked for in it.
        columns: Our column → its name in the files, or names of which the first is taken that is there; null leaves a
            column out. One under its own name need not be there. See `distillkit/data/columns.py`. Null: all of them
            under their own names.
        labels: Names of the classes in the order of their ids; null: those that the files declare (Parquet), or the
            sorted classes of the training split.
        template: Our column → text with {fields}, which are columns of the files (or ours); of a list of texts, the
            first is taken whose fields all have a value. Lists of mappings make `messages`.
        filter: Column → a value, a list of values, or conditions (is, not, min, max, min_chars, max_chars).
        validation_share: Without a validation split, so much of the training rows becomes one, chosen by the hash of
            their text.
        fraction: Keep this share of the rows of each split (or by split: {train: 0.1}), chosen by their hash.
        limit: Use at most so many rows of each split (or by split), drawn with a fixed seed.
        streaming: Read, shuffle and encode the training rows window by window, and hold no more than that.
        window: Rows of the files that make a window.
        validation_rows: Without a validation split, the first so many rows of a stream become one.
        on_bad_row: "refuse" the dataset or "skip" the row.
        on_leak: "report" rows that also stand in a later split, "refuse" or "drop" them, or "ignore" the question.
        cache: Folder of encoded rows; null: the user's cache folder; false: none.
        num_workers: Processes that encode; null: as many as pay; 0: none but this one.
        name: For reports; null: the folder of the training file.
    """

    def __init__(
        self,
        train: str | list[str] | None = None,
        validation: str | list[str] | None = None,
        test: str | list[str] | None = None,
        path: str | None = None,
        columns: dict[str, str | list[str] | None] | None = None,
        labels: list[str] | None = None,
        template: dict[str, Any] | None = None,
        filter: dict[str, Any] | None = None,
        validation_share: float | None = None,
        fraction: float | dict[str, float] | None = None,
        limit: int | dict[str, int] | None = None,
        streaming: bool = False,
        window: int = 16384,
        validation_rows: int | None = None,
        on_bad_row: str = "refuse",
        on_leak: str = "report",
        cache: str | bool | None = None,
        num_workers: int | None = None,
        name: str | None = None,
    ) -> None:
        self.files = {split: files for split, files in zip(SPLITS, (train, validation, test), strict=True) if files}
        if not self.files and path is None:
            raise UserError("no files given", where="dataset", fix="set dataset.train=FILE or dataset.path=FOLDER")
        self.path = path
        self.wanted = Preparation(
            columns=columns or {name: name for name in COLUMNS},
            labels=labels,
            template=template or {},
            filter=filter or {},
            validation_share=validation_share,
            fraction=fraction,
            limit=limit,
            on_leak=on_leak,
            handling=Handling(on_bad_row, cache, num_workers),
            streaming=Streaming.wanted(streaming, window, validation_rows),
        )
        self.name = name

    def load(self) -> Rows:
        """Read every split.

        Raises:
            UserError: If a file is missing or unreadable (with its line), has no rows or lacks a column.
        """
        folder = Path(self.path or ".").expanduser()
        if self.path is None:
            found = {split: find_files(files, f"dataset.{split}") for split, files in self.files.items()}
        else:
            found = find_splits(folder, self.files)
        return read_splits(found, folder, self.name, self.wanted)
