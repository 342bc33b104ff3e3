"""Several sources as one: original and pseudo data, mixed at a chosen ratio."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from datasets import Dataset, concatenate_datasets

from distillkit.data.leaks import ON_LEAK, find_leaks, settle_leaks
from distillkit.data.rows import Handling, Rows, Source, check_choice
from distillkit.data.selection import Selection
from distillkit.errors import UserError


class MixedDataset:
    """Mix the training splits of several sources; validation and test come from the first that has them.

    Of each source, `weight × (rows of the first source)` rows are taken with a fixed seed, repeating them when
    the source has fewer. A source without a weight gives every row once.

    Args:
        sources: name → {dataset: a dataset node, weight: a number or null}.
        on_bad_row: "refuse" or "skip" rows that cannot be encoded. About what cannot be read, the source decides.
        on_leak: "report", "refuse" or "drop" training rows that stand in the validation or test split of another
            source, or "ignore" the question.
        cache: Folder of encoded rows; null: the user's cache folder; false: none.
        num_workers: Processes that encode; null: as many as pay.
    """

    def __init__(
        self,
        sources: dict[str, dict[str, Any]],
        on_bad_row: str = "refuse",
        on_leak: str = "report",
        cache: str | bool | None = None,
        num_workers: int | None = None,
    ) -> None:
        if not sources:
            raise UserError("no sources given", where="dataset.sources")
        self.sources: dict[str, Source] = {}
        self.weights: dict[str, float | None] = {}
        for name, part in sources.items():
            where = f"dataset.sources.{name}"
            unknown = set(part) - {"dataset", "weight"}
            if unknown or part.get("dataset") is None:
                raise UserError("a source is {dataset: …, weight: …}", where=where)
            weight = part.get("weight")
            if weight is not None and not weight > 0:
                raise UserError(f"weight must be above 0, got {weight}", where=where)
            self.sources[name], self.weights[name] = part["dataset"], weight
        self.on_leak = check_choice(on_leak, ON_LEAK, "dataset.on_leak")
        self.handling = Handling(on_bad_row, cache, num_workers)

    def load(self) -> Rows:
        """Load every source and mix."""
        loaded = {name: _load(name, source) for name, source in self.sources.items()}
        base = len(next(iter(loaded.values())).split("train"))
        owners: dict[str, Rows] = {}
        for split in ("validation", "test"):
            owner = next((rows for rows in loaded.values() if split in rows.splits), None)
            if owner is not None:
                owners[split] = owner
        parts, notes = [], [f"{name}: {note}" for name, rows in loaded.items() for note in rows.notes]
        for name, rows in loaded.items():
            weight = self.weights[name]
            taken = _take(len(rows.split("train")), None if weight is None else round(weight * base))
            leaks = {} if self.on_leak == "ignore" else _leaks(rows, owners)
            notes += [f"{name}: {note}" for note in settle_leaks(leaks, rows.where, self.on_leak)]
            if leaks and self.on_leak == "drop":
                taken = taken[~leaks["train"][taken]]
            parts.append((rows, taken))
        splits = {"train": _concatenate([rows.split("train").select(taken) for rows, taken in parts])}
        splits |= {split: owner.splits[split] for split, owner in owners.items()}

        def where(split: str, index: int) -> str:
            if split in owners:
                return owners[split].where(split, index)
            for rows, taken in parts:
                if index < len(taken):
                    return rows.where(split, int(taken[index]))
                index -= len(taken)
            raise IndexError(index)

        name = " + ".join(rows.name for rows in loaded.values())
        return Rows(name, splits, _labels(loaded), where, self.handling, tuple(notes))


def _load(name: str, source: Source) -> Rows:
    rows = source.load()
    if rows.stream is not None:
        raise UserError("a stream cannot be mixed", where=f"dataset.sources.{name}", fix="set streaming: false there")
    return rows


def _leaks(rows: Rows, owners: Mapping[str, Rows]) -> dict[str, np.ndarray]:
    """Find the training rows that stand in the validation or test split of another source."""
    others = {split: owner.splits[split] for split, owner in owners.items() if owner is not rows}
    if not others:
        return {}
    selections = {split: Selection.of(table) for split, table in {"train": rows.split("train"), **others}.items()}
    return {split: found for split, found in find_leaks(selections, rows.handling.cache).items() if split == "train"}


def _labels(loaded: dict[str, Rows]) -> list[str] | None:
    """Return the class names that the sources declare, which must agree; None if none does."""
    declared = {name: rows.labels for name, rows in loaded.items() if rows.labels is not None}
    first = next(iter(declared.values()), None)
    for name, labels in declared.items():
        if labels != first:
            raise UserError(
                f"the classes are {', '.join(labels[:8])}, elsewhere {', '.join((first or [])[:8])}",
                where=f"dataset.sources.{name}",
                fix="give every source the same dataset.labels",
            )
    return first


def _take(rows: int, wanted: int | None) -> np.ndarray:
    if wanted is None:
        return np.arange(rows)
    order = np.random.default_rng(0).permutation(rows)
    return np.resize(order, max(wanted, 1))


def _concatenate(parts: list[Dataset]) -> Dataset:
    """Stack parts whose columns may differ; a missing column is null."""
    try:
        return concatenate_datasets(parts)
    except ValueError as error:
        raise UserError(f"the sources' columns do not fit together ({error})", where="dataset.sources") from error
