"""Find the files of each split, and read them."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Mapping
from functools import partial
from glob import glob
from itertools import accumulate
from pathlib import Path

import pyarrow as pa
from datasets import Features

from distillkit.data.cache import cache_folder
from distillkit.data.cursors import open_file
from distillkit.data.prepare import Preparation, Raw, prepare
from distillkit.data.readers import READERS, FileRows, read_file
from distillkit.data.records import suffix
from distillkit.data.rows import Rows
from distillkit.data.stream import stream
from distillkit.errors import UserError

STEMS = {"train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}

Names = str | list[str]


def find_files(patterns: Names, key: str, folder: Path = Path()) -> list[Path]:
    """Resolve file names and glob patterns, in sorted order for each pattern.

    Args:
        patterns: One or several.
        key: Config key for messages.
        folder: What relative names are relative to.
    """
    found = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        path = folder / Path(pattern).expanduser()
        matches = [str(path)] if path.is_file() else sorted(glob(str(path), recursive=True))  # noqa: PTH207
        if not matches:
            raise UserError(f"no such file: {pattern}", where=key)
        found += [Path(match) for match in matches]
    return found


def find_splits(
    folder: Path, named: Mapping[str, Names], stems: Mapping[str, str | None] | None = None
) -> dict[str, list[Path]]:
    """Find the files of each split in a folder: `train.jsonl`, `train-00000-of-00002.parquet` or `train/…`.

    Args:
        folder: To look in.
        named: Split → the files that the user names, in the folder.
        stems: Split → the name that its files have, unless they have a usual one, or None to leave the split out;
            None: only the usual ones.

    Raises:
        UserError: If there is no such folder, or a name is not in it.
    """
    if not folder.is_dir():
        raise UserError(f"no such folder: {folder}", where="dataset.path")
    found = {}
    for split, usual in STEMS.items():
        if split in named:
            found[split] = find_files(named[split], f"dataset.{split}", folder)
            continue
        if stems is not None and stems.get(split) is None:
            continue
        own = None if stems is None else stems[split]
        if own is not None and "[" in own:
            fix = "choose a share with dataset.fraction or dataset.limit"
            raise UserError(f"'{own}' works on the hub only", where=f"dataset.{split}", fix=fix)
        candidates = (_with_stem(folder, stem) for stem in dict.fromkeys([own, *usual]) if stem)
        paths = next((paths for paths in candidates if paths), [])
        if paths:
            found[split] = paths
    return found


def read_splits(files: Mapping[str, list[Path]], folder: Path, name: str | None, wanted: Preparation) -> Rows:
    """Read the files of each split and prepare their rows.

    Args:
        files: Split → its files.
        folder: Where they were looked for.
        name: Of the dataset; None: the folder of the first file.
        wanted: What is to be done with the rows.
    """
    if not files:
        there = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
        names = " or ".join(f"train{ending}" for ending in READERS)
        raise UserError(f"no files of a split in {folder}: {there}", where="dataset.path", fix=f"it needs {names}")
    lenient = wanted.handling.on_bad_row == "skip"
    cache = partial(cache_folder, wanted.handling.cache)
    name = name or next(iter(files.values()))[0].resolve().parent.name
    streamed = files.get("train", []) if wanted.streaming is not None else []
    raws = {}
    for split, paths in files.items():
        if split != "train" or not streamed:
            raws[split] = _joined([read_file(path, wanted.read_columns(), lenient, cache) for path in paths])
    if streamed:
        return stream(
            name, [partial(open_file, path, wanted.read_columns(), lenient) for path in streamed], raws, wanted
        )
    return prepare(name, raws, wanted)


def _with_stem(folder: Path, stem: str) -> list[Path]:
    """Return the files of a split by their name, or those in the folder of that name."""
    if (folder / stem).is_file():
        return [folder / stem]
    if (folder / stem).is_dir():
        return sorted(path for path in (folder / stem).rglob("*") if suffix(path) in READERS and not _about(path))
    shards = re.compile(re.escape(stem) + r"(-\d+-of-\d+)?")
    paths = sorted(path for path in folder.iterdir() if suffix(path) in READERS and shards.fullmatch(_stem(path)))
    if len({(_stem(path) == stem, suffix(path)) for path in paths}) > 1:
        names = ", ".join(path.name for path in paths)
        raise UserError(f"{folder} holds {names}", where="dataset.path", fix=f"name one of them: dataset.{stem}=FILE")
    return paths


def _about(path: Path) -> bool:
    """Tell a file that describes data from one that holds them."""
    return path.name in ("dataset_info.json", "state.json") or path.name.startswith(("_", "."))


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(suffix(path))


def _joined(files: list[FileRows]) -> Raw:
    """Stack files; a column that one of them lacks is null there."""
    names = ", ".join(str(file.path) for file in files)
    try:
        table = pa.concat_tables([file.table for file in files], promote_options="permissive")
    except pa.ArrowTypeError as error:
        raise UserError(f"files with different columns: {str(error).splitlines()[0]}", where=names) from error
    broken = [(file, record) for file in files for record in file.passed_over]
    if not len(table) and not broken:
        raise UserError("there are no rows in it", where=names)
    features = Features({name: kind for file in reversed(files) for name, kind in file.features.items()})
    return Raw(
        table,
        features,
        name=str(files[0].path),
        place=_locator(files),
        broken=[file.passed_over[record] for file, record in broken],
        broken_place=lambda index: broken[index][0].record_place(broken[index][1]),
    )


def _locator(files: list[FileRows]) -> Callable[[int], str]:
    ends = list(accumulate(file.table.num_rows for file in files))

    def place(row: int) -> str:
        part = bisect_right(ends, row)
        return files[part].place(row - (ends[part - 1] if part else 0))

    return place
