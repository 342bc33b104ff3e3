"""The description beside pseudo data, with a checksum of each file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distillkit.data.sealed import CHECKSUM, checksum, sealed, unsealed
from distillkit.errors import UserError

DESCRIPTION = "_pseudo.json"  # the underscore keeps readers of the Parquet folder from taking it for data
FILES = "files"


def describe(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write what the Parquet files of a folder are and where they came from."""
    sums = {path.name: checksum(path) for path in sorted(folder.glob("*.parquet"))}
    text = json.dumps(sealed({**facts, FILES: sums}), indent=1)
    (folder / DESCRIPTION).write_text(text + "\n", encoding="utf-8")


def check_described(path: Path) -> None:
    """Compare a file with its checksum, where a description beside it has one.

    Raises:
        UserError: If either was changed since it was written.
    """
    about = path.with_name(DESCRIPTION)
    if not about.is_file():
        return
    fix = f"run the generate-pseudo command again, or remove {DESCRIPTION} to use the data as they are"
    try:
        data = about.read_bytes()
        found = dict(json.loads(data))
        sums = unsealed(data)[FILES] if {FILES, CHECKSUM} & found.keys() else {}  # older ones have neither
    except (ValueError, TypeError) as error:
        raise UserError(f"the description is damaged ({error})", where=str(about), fix=fix) from error
    if path.name in sums and checksum(path) != sums[path.name]:
        raise UserError("it was changed since it was written", where=str(path), fix=fix)
