"""Several sources as one: original and pseudo data, mixed at a chosen ratio."""

from __future__ import annotations

from typing import Any

import numpy as np
from datasets import Dataset, concatenate_datasets

from distillkit.data.rows import Rows, Source
from distillkit.errors import UserError


class MixedDataset:
    """Mix the training splits of several sources; validation and test come from the first that has them.

    Of each source, `weight × (rows of the first source)` rows are taken with a fixed seed, repeating them when
    the source has fewer. A source without a weight gives every row once.

    Args:
        sources: name → {dataset: a dataset node, weight: a number or null}.
    """

    def __init__(self, sources: dict[str, dict[str, Any]]) -> None:
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

    def load(self) -> Rows:
        """Load every source and mix."""
        loaded = {name: source.load() for name, source in self.sources.items()}
        first = next(iter(loaded.values()))
        base = len(first.split("train"))
        parts = []
        for name, rows in loaded.items():
            weight = self.weights[name]
            train = rows.split("train")
            parts.append((name, rows, _take(len(train), None if weight is None else round(weight * base))))
        splits = {"train": _concatenate([rows.split("train").select(taken) for _, rows, taken in parts])}
        owners: dict[str, Rows] = {}
        for split in ("validation", "test"):
            owner = next((rows for rows in loaded.values() if split in rows.splits), None)
            if owner is not None:
                splits[split], owners[split] = owner.splits[split], owner

        def where(split: str, index: int) -> str:
            if split in owners:
                return owners[split].where(split, index)
            for _, rows, taken in parts:
                if index < len(taken):
                    return rows.where(split, int(taken[index]))
                index -= len(taken)
            raise IndexError(index)

        return Rows(" + ".join(rows.name for rows in loaded.values()), splits, _labels(loaded), where)


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
