"""A dataset of the Hugging Face hub (or of the local hub cache when offline)."""

from __future__ import annotations

from datasets import Dataset, load_dataset

from distillkit.data.files import sample
from distillkit.data.rows import (
    SPLITS,
    Rows,
    check_limit,
    chosen_columns,
    name_labels,
    select_columns,
    split_and_row,
)
from distillkit.errors import UserError


class HubDataset:
    """Load a dataset by its hub id.

    Args:
        path: Hub id, such as "nyu-mll/glue".
        config: Name of the dataset's configuration, such as "sst2".
        revision: Branch, tag or commit; pin it for a result that can be repeated.
        train: Name of the hub split that is our training split; null: none. Slices such as "train[:90%]" work.
        validation: Likewise.
        test: Likewise.
        columns: Canonical column → its name in the dataset; null leaves a column out.
        labels: Names of the classes; null: those that the dataset declares.
        limit: Use at most so many rows of each split, drawn with a fixed seed.
    """

    def __init__(
        self,
        path: str,
        config: str | None = None,
        revision: str | None = None,
        train: str | None = "train",
        validation: str | None = "validation",
        test: str | None = None,
        columns: dict[str, str | None] | None = None,
        labels: list[str] | None = None,
        limit: int | None = None,
    ) -> None:
        self.path = path
        self.config = config
        self.revision = revision
        self.hub_splits = {
            ours: theirs for ours, theirs in zip(SPLITS, (train, validation, test), strict=True) if theirs
        }
        self.columns = chosen_columns(columns or {"text": "text", "label": "label"})
        self.labels = labels
        self.limit = check_limit(limit)

    def load(self) -> Rows:
        """Download, or read from the cache, every split."""
        splits, labels, kept = {}, self.labels, {}
        for ours, theirs in self.hub_splits.items():
            rows = select_columns(self._load_split(theirs), self.columns, f"{self.path} ({theirs})")
            kept[ours] = sample(len(rows), self.limit)
            splits[ours], declared = name_labels(rows.select(kept[ours]) if self.limit else rows)
            labels = labels or declared
        name = f"{self.path} {self.config or ''}".strip()
        return Rows(name, splits, labels, lambda split, index: split_and_row(split, int(kept[split][index])))

    def _load_split(self, split: str) -> Dataset:
        try:
            return load_dataset(self.path, self.config, split=split, revision=self.revision)
        except (OSError, ValueError) as error:
            fix = "check dataset.path, dataset.config and the connection (HF_HUB_OFFLINE=1 uses only the cache)"
            reason = f"{type(error).__name__}: {error}"[:200]
            raise UserError(
                f"cannot load '{self.path}' split '{split}' ({reason})", where="dataset", fix=fix
            ) from error
