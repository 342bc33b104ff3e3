"""Tables on disk that are made once: memory-mapped Arrow files under a key, shared by all processes.

An entry is a folder `<key>` with `rows.arrow` (an Arrow stream) and `facts.json`. It is written beside and renamed, so
that it is whole or not there; one that was damaged later is found by its checksums, named and made anew. A lock keeps
processes from making the same entry at the same time. Entries that nobody used for `KEPT_DAYS` are removed.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
from filelock import FileLock

from distillkit.data.sealed import checksum, sealed, unsealed
from distillkit.errors import UserError
from distillkit.reporting.console import notice

KEPT_DAYS = 30
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)
ROWS, FACTS = "rows.arrow", "facts.json"


def cache_folder(setting: str | bool | None) -> Path | None:
    """Return the folder that a `dataset.cache` setting means, which is made; None for no cache.

    Raises:
        UserError: If it cannot be written.
    """
    if setting is False:
        return None
    named = setting if isinstance(setting, str) else os.environ.get("DISTILLKIT_CACHE")
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = Path(named or f"{home}/distillkit").expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _cannot_write(folder, error) from error
    return folder


class TableWriter:
    """Write tables one after the other as one, to a file or (without a path) into memory.

    Columns may turn out wider than they began (null, then text; integers, then floats): what was written is then
    written again.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.schema: pa.Schema | None = None
        self.rows = 0
        self._kept: list[pa.Table] = []
        self._stream: Any = None

    def write(self, table: pa.Table) -> None:
        """Add rows.

        Raises:
            ArrowInvalid, ArrowTypeError: If they do not fit those before.
        """
        table = table.replace_schema_metadata(None)
        wider = table.schema if self.schema is None else _unified(self.schema, table.schema)
        if wider != self.schema:
            self._widen(wider)
        fitting = _cast(table, wider)
        if self.path is None:
            self._kept.append(fitting)
        else:
            self._stream.write_table(fitting)
        self.rows += table.num_rows

    def restart(self) -> None:
        """Forget what was written."""
        self._close()
        self.schema, self.rows, self._kept = None, 0, []

    def finish(self) -> pa.Table:
        """Return everything that was written; a file is memory-mapped."""
        self._close()
        if self.schema is None:
            return pa.table({})
        if self.path is None:
            return pa.concat_tables([_cast(table, self.schema) for table in self._kept])
        return _map(self.path)

    def _widen(self, schema: pa.Schema) -> None:
        self._close()
        self.schema = schema
        if self.path is None:
            return
        before = None
        if self.rows:
            before = self.path.with_suffix(".narrow")
            self.path.replace(before)
        self._stream = pa.ipc.new_stream(str(self.path), schema)
        if before is not None:
            for batch in _map(before).to_batches():
                self._stream.write_table(_cast(pa.Table.from_batches([batch]), schema))
            before.unlink()

    def _close(self) -> None:
        if self._stream is not None:
            self._stream.close()
        self._stream = None


Make = Callable[[TableWriter], dict[str, Any]]


def cached(folder: Path | None, key: str, make: Make) -> tuple[pa.Table, dict[str, Any]]:
    """Return the table under a key, and the facts that its maker returned; make it if it is not there.

    Args:
        folder: The cache; None: make the table in memory.
        key: Everything that the table depends on, hashed.
        make: Writes the table and returns facts, as JSON has them. What it raises leaves nothing behind.
    """
    if folder is None:
        writer = TableWriter(None)
        facts = make(writer)
        return writer.finish(), facts
    entry = folder / key
    found = _open(entry, quiet=True)
    if found is not None:
        return found
    try:
        with FileLock(folder / f"{key}.lock"):
            found = _open(entry)
            return found if found is not None else _make(entry, make)
    except OSError as error:
        if error.errno in FULL:
            raise _cannot_write(folder, error) from error
        raise


def _make(entry: Path, make: Make) -> tuple[pa.Table, dict[str, Any]]:
    _forget_unused(entry.parent)
    beside = Path(tempfile.mkdtemp(dir=entry.parent, prefix=f".{entry.name[:12]}-"))
    try:
        writer = TableWriter(beside / ROWS)
        facts = make(writer)
        table = writer.finish()
        about = {"sha256": checksum(beside / ROWS) if (beside / ROWS).exists() else None, "facts": facts}
        (beside / FACTS).write_text(json.dumps(sealed(about)), encoding="utf-8")
        shutil.rmtree(entry, ignore_errors=True)  # damaged, or it would have been used
        beside.replace(entry)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return table, facts


def _open(entry: Path, quiet: bool = False) -> tuple[pa.Table, dict[str, Any]] | None:
    """Open an entry; None if it is not there or damaged, which is said unless `quiet`."""
    if not entry.is_dir():
        return None
    name = FACTS
    try:
        about = unsealed((entry / FACTS).read_bytes())
        if about["sha256"] is None:
            return pa.table({}), about["facts"]
        name = ROWS
        if checksum(entry / ROWS) != about["sha256"]:
            raise ValueError("its checksum is another")
        os.utime(entry)
        return _map(entry / ROWS), about["facts"]
    except (OSError, ValueError) as error:
        if not quiet:
            notice(f"{entry / name} cannot be used ({error}), and is made anew")
        return None


def _forget_unused(folder: Path) -> None:
    oldest = time.time() - KEPT_DAYS * 24 * 3600
    for path in folder.iterdir():
        ours = (path / FACTS).exists() or path.name.startswith(".") or path.suffix == ".lock"
        if ours and path.stat().st_mtime < oldest:
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def _map(path: Path) -> pa.Table:
    return pa.ipc.open_stream(pa.memory_map(str(path))).read_all()


def _unified(one: pa.Schema, other: pa.Schema) -> pa.Schema:
    return one if one == other else pa.unify_schemas([one, other], promote_options="permissive")


def _cast(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Bring a table to a wider schema; a column that it lacks is null."""
    if table.schema == schema:
        return table
    columns = [
        table[field.name].cast(field.type) if field.name in table.column_names else pa.nulls(len(table), field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def _cannot_write(folder: Path, error: OSError) -> UserError:
    return UserError(
        f"cannot write to {folder} ({error.strerror or error})",
        where="dataset.cache",
        fix="name another folder, or encode in memory: dataset.cache=false",
    )
