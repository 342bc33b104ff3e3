"""The last pass over generated rows: through the filters, in order, into one plain Parquet folder."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from distillkit.cache.shards import replace
from distillkit.data.described import describe
from distillkit.errors import UserError, located
from distillkit.generation.filters.base import Filter, Given, Row, same_prompt, text_of
from distillkit.reporting.files import plain

BLOCK_ROWS = 1_024  # rows that are judged, and written as a row group, at a time
PART_ROWS = 128 * BLOCK_ROWS  # of a file
SHOWN = 5  # rejects of each filter in rejected.jsonl, and rows that were kept
SHORT = 300  # characters of an example in the report
REJECTED = "rejected.jsonl"


@dataclass
class Refined:
    """What became of the generated rows.

    Attributes:
        generated: How many there were.
        kept: How many of them were written.
        rejected: Filter → how many it rejected, of those that the filters before it kept.
        examples: Filter → the first rows that it rejected, with the reason.
        shown: The first rows that were kept.
        facts: Filter → what else there is to say of its work, such as what a judge cost.
    """

    generated: int = 0
    kept: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[tuple[str, Row]]] = field(default_factory=dict)
    shown: list[Row] = field(default_factory=list)
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)

    def counts(self) -> dict[str, Any]:
        """Return what report.json keeps."""
        return {"generated": self.generated, "rows": self.kept, "rejected": dict(self.rejected)}

    def rejects(self) -> dict[str, list[dict[str, str]]]:
        """Return the examples for the report: filter → reason and the beginning of the text."""
        return {
            name: [{"reason": reason, "text": text_of(row, "row").strip()[:SHORT]} for reason, row in examples]
            for name, examples in self.examples.items()
        }


def check(filters: Mapping[str, Filter | None], given: Given) -> None:
    """Refuse a dataset that lacks what a filter needs, before any row is generated."""
    for name, one in filters.items():
        if one is not None:
            with located(_key(name)):
                one.check(given)


def refine(
    batches: Iterable[list[Row]],
    filters: Mapping[str, Filter | None],
    folder: Path,
    schema: pyarrow.Schema,
    given: Given,
    facts: Mapping[str, Any],
) -> Refined:
    """Write the rows that every filter keeps to `folder`, and the first rejects to `rejected.jsonl` beside it.

    The folder is there whole or not at all, and depends on nothing but the rows, their order and the filters: not on
    how the rows are cut into batches. A block of rows at a time is in memory, and what a filter remembers.

    Args:
        batches: The generated rows, in order.
        filters: Name → filter; each sees what those before it kept. One that is None is switched off.
        folder: Of the Parquet files; an older one is replaced.
        schema: Of the rows.
        given: What the filters may look at.
        facts: What the description in the folder says beside the counts.

    Raises:
        UserError: If no row is left, or a filter refuses the rows.
    """
    used = {name: one for name, one in filters.items() if one is not None}
    for name, one in used.items():
        with located(_key(name)):
            one.begin(given)
    beside = folder.with_name(f"{folder.name}.partial")
    if beside.exists():
        shutil.rmtree(beside)
    beside.mkdir(parents=True)
    found = Refined(rejected=dict.fromkeys(used, 0), examples={name: [] for name in used})
    try:
        _write(beside, _sift(batches, used, found), schema)
        if not found.kept:
            raise _nothing_left(found, used)
        describe(beside, {**facts, **found.counts()})
        found.facts = {name: facts for name, one in used.items() if (facts := one.facts())}
        replace(folder.with_name(REJECTED), _rejected(found))
        _settle(beside, folder)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    return found


def _sift(batches: Iterable[list[Row]], filters: Mapping[str, Filter], found: Refined) -> Iterator[Row]:
    """Yield the rows that all filters keep, and count."""
    for rows in _blocks(batches):
        found.generated += len(rows)
        for name, one in filters.items():
            with located(_key(name)):
                reasons = one.judge(rows)
            rejects = [(reason, row) for reason, row in zip(reasons, rows, strict=True) if reason is not None]
            found.rejected[name] += len(rejects)
            found.examples[name].extend(rejects[: max(0, SHOWN - len(found.examples[name]))])
            rows = [row for reason, row in zip(reasons, rows, strict=True) if reason is None]
        found.kept += len(rows)
        found.shown.extend(rows[: max(0, SHOWN - len(found.shown))])
        yield from rows


def _blocks(batches: Iterable[list[Row]]) -> Iterator[list[Row]]:
    """Cut the rows anew into blocks of at least `BLOCK_ROWS`, never between two samples of one prompt."""
    block: list[Row] = []
    for batch in batches:
        for row in batch:
            if len(block) >= BLOCK_ROWS and not same_prompt(block[-1], row):
                yield block
                block = []
            block.append(row)
    if block:
        yield block


def _write(folder: Path, rows: Iterator[Row], schema: pyarrow.Schema) -> None:
    """Write rows as row groups of `BLOCK_ROWS`, `PART_ROWS` in a file."""
    blocks = iter(lambda: list(islice(rows, BLOCK_ROWS)), [])
    for part in count():
        first = next(blocks, None)
        if first is None:
            break
        with pyarrow.parquet.ParquetWriter(folder / f"part-{part:05d}.parquet", schema) as writer:
            for block in chain([first], islice(blocks, PART_ROWS // BLOCK_ROWS - 1)):
                writer.write_table(pyarrow.Table.from_pylist(block, schema=schema))


def _settle(beside: Path, folder: Path) -> None:
    """Put a finished folder in its place, safe from a crash of the machine too."""
    for path in (*beside.iterdir(), beside):
        _sync(path)
    if folder.exists():
        shutil.rmtree(folder)
    beside.replace(folder)
    _sync(folder.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _rejected(found: Refined) -> bytes:
    lines = [
        json.dumps(plain({"filter": name, "reason": reason, "row": row}), ensure_ascii=False) + "\n"
        for name, examples in found.examples.items()
        for reason, row in examples
    ]
    return "".join(lines).encode()


def _key(name: str) -> str:
    return f"generate.filters.{name}"


def _nothing_left(found: Refined, filters: Mapping[str, Filter]) -> UserError:
    if not found.generated:
        return UserError("the teacher was asked about no row", where="generate.split")
    worst = max(found.rejected, key=lambda name: found.rejected[name])
    others = "".join(f", {n:,} by {name}" for name, n in found.rejected.items() if n and name != worst)
    return UserError(
        f"no row is left: {found.rejected[worst]:,} of {found.generated:,} were rejected by it{others}",
        where=_key(worst),
        fix=filters[worst].hint,
    )
