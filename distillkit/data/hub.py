"""A dataset of the Hugging Face hub (or of the local hub cache when offline), or a folder with the same columns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset, Features, IterableDataset, load_dataset

from distillkit.data.blocks import Block
from distillkit.data.columns import COLUMNS
from distillkit.data.cursors import TableCursor
from distillkit.data.folders import find_splits, read_splits
from distillkit.data.prepare import Preparation, Raw, prepare
from distillkit.data.rows import SPLITS, Handling, Rows, Streaming, split_and_row
from distillkit.data.stream import stream
from distillkit.errors import UserError

READ = 1000  # rows of a stream at a time


class HubDataset:
    """Load a dataset by its hub id, or files of the same form from a folder.

    Args:
        path: Hub id, such as "nyu-mll/glue"; or a folder with files named after the splits.
        config: Name of the dataset's configuration, such as "sst2".
        revision: Branch, tag or commit; pin it for a result that can be repeated.
        train: Name of the hub split that is our training split; null: none. Slices such as "train[:90%]" work.
        validation: Likewise. A split under its own name need not be there.
        test: Likewise.
        columns: Our column → its name in the dataset, or names of which the first is taken that is there; null leaves
            a column out. One under its own name need not be there. See `distillkit/data/columns.py`.
        labels: Names of the classes; null: those that the dataset declares.
        template: As of `FileDataset`; so are the arguments after it.
        filter: Which rows are kept, by their columns.
        validation_share: Share of the training rows that becomes the validation split where there is none.
        fraction: Share of the rows of each split that is kept.
        limit: Use at most so many rows of each split, drawn with a fixed seed.
        streaming: Read the training rows window by window, without downloading them first; see `FileDataset`.
        window: Rows of a window.
        validation_rows: Without a validation split, the first so many rows of a stream become one.
        on_bad_row: "refuse" or "skip".
        on_leak: "report", "refuse", "drop" or "ignore".
        cache: Folder of encoded rows; null: the user's cache folder; false: none.
        num_workers: Processes that encode; null: as many as pay.
        name: For reports; null: path and config.
        data_dir: Folder of the repository that has the data, where there are no configurations.
    """

    def __init__(
        self,
        path: str,
        config: str | None = None,
        revision: str | None = None,
        train: str | None = "train",
        validation: str | None = "validation",
        test: str | None = "test",
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
        data_dir: str | None = None,
    ) -> None:
        self.path = path
        self.config = config
        self.revision = revision
        self.more = {} if data_dir is None else {"data_dir": data_dir}
        self.splits = dict(zip(SPLITS, (train, validation, test), strict=True))
        self.name = name
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

    def load(self) -> Rows:
        """Download, or read from the cache or the folder, every split."""
        folder = Path(self.path).expanduser()
        if folder.is_dir() or self.path.startswith((".", "/", "~")):
            files = find_splits(folder, {}, self.splits)
            if files or not (folder / "README.md").is_file():  # a copy of a hub repository describes itself there
                return read_splits(files, folder, self.name, self.wanted)
        name = self.name or f"{self.path} {self.config or ''}".strip()
        train = self.splits["train"] if self.wanted.streaming is not None else None
        raws = {}
        for ours, theirs in self.splits.items():
            if theirs is not None and not (ours == "train" and train):
                rows = self._load_split(theirs, optional=theirs == ours != "train")
                if rows is not None:
                    raws[ours] = _raw(rows, f"{self.path} ({theirs})", ours)
        if train is None:
            return prepare(name, raws, self.wanted)
        rows = self._load_split(train, optional=False, streaming=True)
        return stream(name, [lambda: HubCursor(f"{self.path} ({train})", rows)], raws, self.wanted)

    def _load_split(self, split: str, optional: bool, **how: Any) -> Any:
        try:
            return load_dataset(self.path, self.config, split=split, revision=self.revision, **how, **self.more)
        except (OSError, ValueError) as error:
            if optional and "Unknown split" in str(error):
                return None
            fix = "check dataset.path, dataset.config and the connection (HF_HUB_OFFLINE=1 uses only the cache)"
            reason = f"{type(error).__name__}: {error}"[:200]
            raise UserError(
                f"cannot load '{self.path}' split '{split}' ({reason})", where="dataset", fix=fix
            ) from error


class HubCursor(TableCursor):
    """Rows that are downloaded while they are read.

    Args:
        name: Of dataset and split.
        rows: As `datasets` streams them.
    """

    def __init__(self, name: str, rows: IterableDataset) -> None:
        super().__init__(name, rows.with_format("arrow").iter(READ))
        self.declared = rows.features

    def take(self, count: int) -> Block | None:
        """Read rows."""
        block = super().take(count)
        named = {} if self.declared is None else dict(self.declared)
        return None if block is None else replace(block, features=Features({**block.features, **named}))

    def _place(self, number: int) -> str:
        return f"train, row {number}"


def _raw(rows: Dataset, name: str, split: str) -> Raw:
    """Take a dataset as a table, which stays memory-mapped unless its rows were picked by index."""
    table: pa.Table = rows.data.table if rows._indices is None else rows.with_format("arrow")[:]
    return Raw(table, rows.features, name, lambda index: split_and_row(split, index))
