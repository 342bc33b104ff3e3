"""What happens to rows between reading and encoding, whatever they were read from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Features

from distillkit.data.answers import read_answers
from distillkit.data.bad_rows import settle
from distillkit.data.cache import TableWriter, cache_folder, cached
from distillkit.data.columns import COLUMNS, ColumnMap, chosen_columns, find_columns, part
from distillkit.data.digest import code_digest, digest, table_digest
from distillkit.data.filters import Filter, check_filter, matches
from distillkit.data.labels import name_classes
from distillkit.data.leaks import ON_LEAK, find_leaks, settle_leaks
from distillkit.data.rows import Handling, Rows, Streaming, check_choice
from distillkit.data.selection import LARGE, Selection
from distillkit.data.splits import Amount, by_split, check_amounts, fraction_of, held_out, sample
from distillkit.data.templates import Template, check_templates, fields, render
from distillkit.data.types import one_type
from distillkit.errors import UserError

PIECE = 10_000  # rows that are rendered at a time


@dataclass(frozen=True)
class Preparation:
    """What a source's settings ask for; see `FileDataset` for their meaning."""

    columns: ColumnMap
    labels: list[str] | None = None
    template: Mapping[str, Template] = field(default_factory=dict)
    filter: Filter = field(default_factory=dict)
    validation_share: float | None = None
    fraction: Amount = None
    limit: Amount = None
    on_leak: str = "report"
    handling: Handling = field(default_factory=Handling)
    streaming: Streaming | None = None

    def __post_init__(self) -> None:
        chosen_columns(self.columns)
        check_templates(self.template, self.columns)
        check_filter(self.filter)
        check_amounts(self.limit, self.fraction, self.validation_share)
        check_choice(self.on_leak, ON_LEAK, "dataset.on_leak")
        if self.streaming is not None:
            self._check_streaming()

    def _check_streaming(self) -> None:
        """Refuse what needs the whole training split."""
        if by_split(self.limit, "dataset.limit")["train"] is not None:
            fix = "say train.max_steps instead; for other splits dataset.limit={validation: N}"
            raise UserError("no sample can be drawn from a stream", where="dataset.limit", fix=fix)
        if self.validation_share is not None:
            fix = "set dataset.validation_share=null and dataset.validation_rows=N, which takes the first rows"
            raise UserError("no share can be taken of a stream", where="dataset.validation_share", fix=fix)

    def read_columns(self) -> set[str]:
        """Return the names of the source's columns that are read."""
        chosen = chosen_columns(self.columns)
        filled = [fields(template, f"dataset.template.{name}") for name, template in self.template.items()]
        return {name for names in chosen.values() for name in names}.union(self.filter, *filled)


@dataclass(frozen=True)
class Raw:
    """A split as it was read.

    Attributes:
        table: Its rows, in the source's columns.
        features: Of the columns, as `datasets` keeps them.
        name: Of its source, for messages.
        place: Index of a row → its place.
        broken: What is wrong with the records that are no rows because they could not be read.
        broken_place: Index of such a record → its place.
    """

    table: pa.Table
    features: Features
    name: str
    place: Callable[[int], str]
    broken: Sequence[str] = ()
    broken_place: Callable[[int], str] = str


@dataclass(frozen=True)
class Part:
    """A split under way."""

    raw: Raw
    rows: Selection  # of a table that has the rows of `raw.table`, in our columns

    def only(self, chosen: np.ndarray) -> Part:
        """Keep what is chosen among the rows: bool `[rows]`."""
        return replace(self, rows=self.rows.only(chosen))

    def place(self, index: int) -> str:
        """Name the place of a row."""
        return self.raw.place(int(self.rows.kept[index]))


def prepare(name: str, raws: Mapping[str, Raw], wanted: Preparation) -> Rows:
    """Map columns, filter, fill templates, split, look for leaks and subsample, in this order.

    Args:
        name: Of the dataset.
        raws: Split → its rows as they were read.
        wanted: What is to be done.

    Raises:
        UserError: If the settings do not fit the rows, or bad rows or leaks are refused.
    """
    parts, notes, labels = {}, [], wanted.labels
    for split, raw in raws.items():
        found = prepare_split(raw, wanted)
        if found.unmet == len(raw.table) > 0:
            raise UserError(f"no row of the {split} split passes the filter", where="dataset.filter")
        notes += [found.filtered(split)] if found.unmet else []
        note = settle(found.problems, found.records, found.problem_place, wanted.handling.on_bad_row, split)
        notes += [] if note is None else [note]
        parts[split] = found.part
        labels = labels or found.labels
    if wanted.validation_share is not None and "train" in parts and "validation" not in parts:
        chosen = held_out(parts["train"].rows, wanted.validation_share)
        notes.append(f"validation: {chosen.sum():,} of {len(chosen):,} training rows, by their hash")
        whole = parts.pop("train")
        parts = {"train": whole.only(~chosen), "validation": whole.only(chosen), **parts}
    if wanted.on_leak != "ignore":
        leaks = find_leaks({split: part.rows for split, part in parts.items()}, wanted.handling.cache)
        notes += settle_leaks(leaks, partial(_place, parts), wanted.on_leak)
        if wanted.on_leak == "drop":
            parts |= {split: parts[split].only(~found) for split, found in leaks.items()}
    parts = {split: _subsample(split, part, wanted) for split, part in parts.items()}
    return Rows(
        name=name,
        splits={split: part.rows.dataset() for split, part in parts.items()},
        labels=labels,
        where=partial(_place, parts),
        handling=wanted.handling,
        notes=tuple(notes),
        sources={split: (part.raw.name, tuple(part.raw.table.column_names)) for split, part in parts.items()},
    )


def _place(parts: Mapping[str, Part], split: str, index: int) -> str:
    return parts[split].place(index)


@dataclass(frozen=True)
class Prepared:
    """Rows in our columns, and what was found out about them.

    Attributes:
        part: The rows that are left.
        unmet: How many do not meet the filter.
        records: How many rows meet it, or are no rows because they could not be read.
        problems: Number of such a record → what is wrong: of those that could not be read, then of the others.
        labels: The class names that a column declares.
    """

    part: Part
    unmet: int
    records: int
    problems: Mapping[int, str]
    labels: list[str] | None

    def problem_place(self, number: int) -> str:
        """Name the place of a record with a problem."""
        raw, broken = self.part.raw, len(self.part.raw.broken)
        return raw.broken_place(number) if number < broken else raw.place(number - broken)

    def filtered(self, split: str) -> str:
        """Say what the filter did."""
        rows = len(self.part.raw.table)
        return f"{split}: the filter keeps {rows - self.unmet:,} of {rows:,} rows"


def prepare_split(raw: Raw, wanted: Preparation) -> Prepared:
    """Map the columns of rows, filter them and fill templates; leave out the bad ones."""
    ours = find_columns(raw.table.schema, chosen_columns(wanted.columns), raw.name)
    ours = {name: theirs for name, theirs in ours.items() if name not in wanted.template}
    table = pa.table({name: part(raw.table, theirs) for name, theirs in ours.items()})
    features = {name: raw.features.get(theirs) for name, theirs in ours.items()}
    table, declared = name_classes(read_answers(one_type(table)), features)
    kept = _filter(raw, table, wanted)
    table, unfilled = _fill_templates(raw, table, wanted)
    bad = np.isin(kept, np.fromiter(unfilled, np.int64))
    count = len(raw.broken)
    problems = {**dict(enumerate(raw.broken)), **{index + count: unfilled[index] for index in kept[bad].tolist()}}
    left = Part(raw, Selection(table, kept[~bad]))
    return Prepared(left, len(raw.table) - len(kept), len(kept) + count, problems, declared)


def _filter(raw: Raw, table: pa.Table, wanted: Preparation) -> np.ndarray:
    """Return the indices of the rows that pass the filter."""
    everything = np.arange(len(raw.table))
    if not wanted.filter or not len(everything):
        return everything
    keys = {name: f"dataset.filter.{name}" for name in wanted.filter}
    met = matches(wanted.filter, _fields(raw, {name: table[name] for name in table.column_names}, keys))
    return everything[met]


def _fields(raw: Raw, ours: Mapping[str, pa.ChunkedArray], keys: Mapping[str, str]) -> dict[str, pa.ChunkedArray]:
    """Find columns by name: class names as ours, others as the source has them, else ours.

    Args:
        raw: The source's columns.
        ours: Our columns.
        keys: Name → the config key that asks for it.
    """
    found = {}
    for name, key in keys.items():
        if name in ours and (name not in raw.table.column_names or COLUMNS[name] in ("label", "labels")):
            found[name] = ours[name]
        elif name in raw.table.column_names:
            found[name] = raw.table[name]
        else:
            fix = f"its columns are: {', '.join(raw.table.column_names)}"
            raise UserError(f"no column '{name}' in {raw.name}", where=key, fix=fix)
    return found


def _fill_templates(raw: Raw, table: pa.Table, wanted: Preparation) -> tuple[pa.Table, dict[int, str]]:
    """Add the columns that are written by templates; return index → reason of the rows that cannot be filled too."""
    if not wanted.template:
        return table, {}
    keys: dict[str, str] = {}
    for name, template in wanted.template.items():
        keys |= dict.fromkeys(fields(template, ""), f"dataset.template.{name}")
    read = pa.table(_fields(raw, {name: table[name] for name in table.column_names}, keys))

    def make(writer: TableWriter) -> dict[str, Any]:
        bad: dict[int, str] = {}
        for start in range(0, len(read), PIECE):
            piece = read.slice(start, PIECE)
            columns = {name: piece[name] for name in piece.column_names}
            filled = {}
            for name, template in wanted.template.items():
                filled[name], unfilled = render(template, name, columns)
                bad.update({start + index: reason for index, reason in unfilled.items() if start + index not in bad})
            writer.write(pa.table(filled))
        return {"bad": list(bad.items())}

    folder = cache_folder(wanted.handling.cache) if read.nbytes > LARGE else None
    key = "" if folder is None else digest(table_digest(read), dict(wanted.template), code_digest())
    filled, facts = cached(folder, key, make)
    columns = {name: both[name] for both in (table, filled) for name in both.column_names}
    return pa.table(columns), dict(facts["bad"])


def _subsample(split: str, part: Part, wanted: Preparation) -> Part:
    fraction = by_split(wanted.fraction, "dataset.fraction")[split]
    if fraction is not None and fraction < 1:
        part = part.only(fraction_of(part.rows, fraction))
        if not len(part.rows):
            raise UserError(f"no row of the {split} split is left", where="dataset.fraction", fix="raise it")
    limit = by_split(wanted.limit, "dataset.limit")[split]
    return part if limit is None else part.only(sample(len(part.rows), int(limit)))
