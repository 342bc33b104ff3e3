"""A teacher store on disk: shards of a fixed layout, and a description with which they can be read without distillkit.

    teacher-store/
      store.json            the description, written last: a folder without it is not finished
      part-000000.arrow …   Arrow streams, one record batch each; `datasets` maps them into memory
      part-000000.json …    rows, bytes and SHA-256 of each

A row of the store is an encoded row of the dataset, in order: column `row` is the source row that it was made of,
`items` how many items (tokens that count, or 1) it has. The other columns hold bytes: those of the codec what the
teacher said about the row's items, `feature:NAME` what was captured inside it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from distillkit.cache.codec import Codec
from distillkit.cache.features import FeatureFormat, format_of
from distillkit.cache.formats import codec_of
from distillkit.cache.shards import BEGUN, check_sum, replace
from distillkit.data.sealed import sealed, unsealed
from distillkit.errors import UserError

DESCRIPTION = "store.json"
FORMAT, VERSION = "distillkit teacher store", 2
UNSEALED = 1  # the version whose description had no checksum
ROW, ITEMS = "row", "items"


def is_store(path: str) -> bool:
    """Tell whether a path is a teacher store, finished or not."""
    folder = Path(path).expanduser()
    return (folder / DESCRIPTION).is_file() or ((folder / BEGUN).is_file() and not (folder / "config.json").is_file())


def arrow(table: pa.Table) -> pa.Buffer:
    """Return a table as the bytes of an Arrow stream of one record batch."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table.combine_chunks())
    return sink.getvalue()


def seal(folder: Path, description: Mapping[str, Any]) -> None:
    """Write the description, which makes the store a finished one."""
    replace(folder / DESCRIPTION, (json.dumps(sealed(description), indent=1) + "\n").encode())


class Store:
    """A finished store.

    Args:
        path: Its folder.
        key: Config key for messages.

    Raises:
        UserError: If it is not there, not finished, of another version, or lacks a file; in milliseconds.
    """

    def __init__(self, path: str, key: str) -> None:
        self.folder = Path(path).expanduser()
        self.path = path
        self.key = key
        self.facts = self._describe()
        self.codec: Codec | None = codec_of(self.facts["codec"]) if self.facts["codec"] is not None else None
        self.features: dict[str, FeatureFormat] = {d["name"]: format_of(d) for d in self.facts["features"]}
        self._tables: dict[int, pa.Table] = {}
        self._check_files()

    def __len__(self) -> int:
        return int(self.facts["encoded"]["rows"])

    def _describe(self) -> dict[str, Any]:
        description = self.folder / DESCRIPTION
        if not self.folder.is_dir():
            raise UserError(f"no such teacher store: {self.path}", where=self.key)
        if not description.is_file():
            begun = (self.folder / BEGUN).is_file()
            what = "is a teacher store that is not finished" if begun else "is no teacher store"
            fix = "run the generate-pseudo command that makes it again" if begun else None
            raise UserError(f"{self.path} {what} (it has no {DESCRIPTION})", where=self.key, fix=fix)
        data = description.read_bytes()
        try:
            facts = dict(json.loads(data))
            known = facts.get("format") == FORMAT and facts.get("version") in (VERSION, UNSEALED)
            if known and facts["version"] != UNSEALED:
                return unsealed(data)
        except (ValueError, TypeError) as error:
            raise UserError(f"{description} is damaged ({error})", where=self.key, fix="make it anew") from error
        if not known:
            found = f"{facts.get('format')} {facts.get('version')}"
            what = f"{self.path} is of another format ('{found}' in {DESCRIPTION})"
            raise UserError(what, where=self.key, fix="make it anew")
        return facts

    def _check_files(self) -> None:
        for shard in self.facts["shards"]:
            path = self.folder / shard["file"]
            if not path.is_file() or path.stat().st_size != shard["bytes"]:
                raise UserError(f"{path} is not the file that was written (missing or cut off)", where=self.key)

    @cached_property
    def _starts(self) -> np.ndarray:
        return np.cumsum([0, *(shard["rows"] for shard in self.facts["shards"])])

    def check(self, number: int) -> None:
        """Compare a shard with its checksum.

        Raises:
            UserError: If it was changed.
        """
        shard = self.facts["shards"][number]
        check_sum(self.folder / shard["file"], shard["sha256"])

    def table(self, number: int) -> pa.Table:
        """Map a shard into memory; it is checked the first time."""
        if number not in self._tables:
            self.check(number)
            path = self.folder / self.facts["shards"][number]["file"]
            self._tables[number] = pa.ipc.open_stream(pa.memory_map(str(path))).read_all()
        return self._tables[number]

    def read(self, rows: Sequence[int] | np.ndarray, names: Sequence[str]) -> dict[str, list[Any]]:
        """Return some columns of some rows, in their order."""
        wanted = np.asarray(rows)
        numbers = np.searchsorted(self._starts, wanted, side="right") - 1
        found: dict[str, list[Any]] = {name: [None] * len(wanted) for name in names}
        for number in np.unique(numbers).tolist():
            places = np.flatnonzero(numbers == number)
            some = self.table(number).select(list(names)).take(pa.array(wanted[places] - self._starts[number]))
            for name in names:
                for place, value in zip(places.tolist(), some[name].to_pylist(), strict=True):
                    found[name][place] = value
        return found

    @property
    def codec_columns(self) -> list[str]:
        """The names of the columns that the codec reads."""
        return list(self.facts["codec"]["columns"])
