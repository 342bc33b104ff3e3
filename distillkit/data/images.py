"""Folders of images as a dataset: the name of the folder that an image lies in is its label."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
from datasets import Features, Value

from distillkit.data.prepare import Preparation, Raw, prepare
from distillkit.data.rows import SPLITS, Handling, Rows
from distillkit.errors import UserError

ENDINGS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})


class ImageFolder:
    """Read images from folders with one folder for each class: `train/cat/1.png`.

    Args:
        train: The folder of the training images.
        validation: Likewise.
        test: Likewise.
        path: A folder: splits that are not named are its folders `train`, `validation` and `test`, if it has them.
        labels: Names of the classes in the order of their ids; null: the sorted names of the training folders.
        fraction: Keep this share of the images of each split (or by split).
        limit: Use at most so many images of each split (or by split), drawn with a fixed seed.
        on_bad_row: "refuse" the dataset or "skip" an image that cannot be read.
        cache: Folder of encoded rows; null: the user's cache folder; false: none.
        num_workers: Processes that look at the images; null: as many as pay.
        name: For reports; null: that of the folder.
    """

    def __init__(
        self,
        train: str | None = None,
        validation: str | None = None,
        test: str | None = None,
        path: str | None = None,
        labels: list[str] | None = None,
        fraction: float | dict[str, float] | None = None,
        limit: int | dict[str, int] | None = None,
        on_bad_row: str = "refuse",
        cache: str | bool | None = None,
        num_workers: int | None = None,
        name: str | None = None,
    ) -> None:
        self.folders = {
            split: folder for split, folder in zip(SPLITS, (train, validation, test), strict=True) if folder
        }
        if not self.folders and path is None:
            raise UserError("no folders given", where="dataset", fix="set dataset.train=FOLDER or dataset.path=FOLDER")
        self.path = path
        self.wanted = Preparation(
            columns={"image": "image", "label": "label"},
            labels=labels,
            fraction=fraction,
            limit=limit,
            on_leak="ignore",
            handling=Handling(on_bad_row, cache, num_workers),
        )
        self.name = name

    def load(self) -> Rows:
        """List the images of every split.

        Raises:
            UserError: If a folder is missing or has no images in folders.
        """
        found = {split: Path(folder).expanduser() for split, folder in self.folders.items()}
        if self.path is not None:
            whole = Path(self.path).expanduser()
            found |= {split: whole / split for split in SPLITS if split not in found and (whole / split).is_dir()}
            if not found:
                raise UserError(f"no folder train, validation or test in {whole}", where="dataset.path")
        raws = {split: _listed(folder, f"dataset.{split}") for split, folder in found.items()}
        first = next(iter(found.values())).resolve()
        return prepare(
            self.name or (first.parent.name if self.path or len(found) > 1 else first.name), raws, self.wanted
        )


def _listed(folder: Path, key: str) -> Raw:
    if not folder.is_dir():
        raise UserError(f"no such folder: {folder}", where=key)
    images = sorted(path for path in folder.glob("*/**/*") if path.suffix.lower() in ENDINGS and path.is_file())
    if not images:
        fix = "it needs a folder for each class, with images in it"
        raise UserError(f"no images in the folders of {folder}", where=key, fix=fix)
    names = [path.relative_to(folder).parts[0] for path in images]
    table = pa.table({"image": [str(path) for path in images], "label": names})
    features = Features({name: Value("string") for name in table.column_names})
    return Raw(table, features, str(folder), place=lambda index: str(images[index]))
