"""A teacher store: what the teacher says about every counted item of a split, for `teacher=cached`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from distillkit.cache.codec import Codec, Encoded
from distillkit.cache.features import FeatureFormat, Kind
from distillkit.cache.formats import encode, usual_codec
from distillkit.cache.store import ITEMS, ROW
from distillkit.data import encode as data_encoding
from distillkit.data.batches import by_length
from distillkit.data.rows import Rows
from distillkit.errors import UserError
from distillkit.generation.base import SHARD_ROWS, at_least_one, ordered_origins
from distillkit.generation.filters.base import Filter
from distillkit.losses.items import token_mask
from distillkit.losses.vectors import pool
from distillkit.models.capture import check_features
from distillkit.models.live import LiveModel
from distillkit.signals import Batch, Signal, Wanted
from distillkit.tasks.base import Task

POOLING = ("first", "last", "mean")


class TeacherStore:
    """Keep the teacher's outputs for every counted item of a split: whole for classes, sparse over a vocabulary.

    The masks of a masked language model are drawn once, the same that an evaluation draws; a student that learns from
    the store sees them in every epoch.

    Args:
        split: Which rows.
        batch_size: Rows of a forward pass.
        codec: What is kept of the logits (`distillkit.cache.formats`); None: all of few classes, and of a vocabulary
            the head exactly and a sample of the tail.
        logits: Whether logits are kept at all.
        features: Names (`distillkit.features`) of what is kept from inside the teacher.
        feature_type: Of their numbers: "float16", or "int8" with a scale for each vector.
        pooling: Keep one vector of each row's tokens: of the "first" or "last" token, or the "mean".
        seed: Of what is sampled.
        sample: Items on which the store is compared with the teacher, in the end and by `distillkit eval`.
        shard_rows: Rows that are written together, and are lost at most if the run is killed.
    """

    name = "teacher_store"
    required_columns: tuple[tuple[str, ...], ...] = ()  # those of the task
    asks = None
    filters: Mapping[str, Filter | None] = {}

    def __init__(
        self,
        split: str = "train",
        batch_size: int = 16,
        codec: Codec | None = None,
        logits: bool = True,
        features: list[str] | None = None,
        feature_type: str = "float16",
        pooling: str | None = None,
        seed: int = 0,
        sample: int = 4096,
        shard_rows: int = SHARD_ROWS,
    ) -> None:
        if feature_type not in ("float16", "int8"):
            raise UserError(f"must be float16 or int8, got '{feature_type}'", where="generate.feature_type")
        if pooling is not None and pooling not in POOLING:
            raise UserError(f"must be one of {', '.join(POOLING)}, got '{pooling}'", where="generate.pooling")
        if not logits and not features:
            raise UserError("nothing is kept", where="generate", fix="set generate.logits=true or name features")
        self.split = split
        self.batch_size = at_least_one(batch_size, "generate.batch_size")
        self.codec = codec
        self.logits = logits
        self.features = sorted(set(features or []))
        self.feature_type: Kind = "int8" if feature_type == "int8" else "float16"
        self.pooling = pooling
        self.seed = seed
        self.sample = at_least_one(sample, "generate.sample")
        self.shard_rows = at_least_one(shard_rows, "generate.shard_rows")

    def check(self, task: Task) -> None:
        """Refuse a task whose items do not have the same outputs throughout."""
        if task.adds_head and not task.has_classes and not task.soft_labels:
            what = f"the outputs of {task.name} are as many as a row has tokens, and no store holds these"
            raise UserError(what, where="generate", fix="use teacher=live")

    def total(self, rows: Rows) -> int:
        """Return how many rows of the split there are."""
        return len(rows.split(self.split))

    def prepare(self, teacher: LiveModel | None, rows: Rows, task: Task) -> AskedForStore:
        """Encode the split, and see on one row what the teacher shows.

        Args:
            teacher: In evaluation mode.
            rows: The dataset.
            task: Of the teacher.
        """
        assert teacher is not None
        labels = teacher.labels if task.has_classes else None
        data = data_encoding.encode(rows, self.split, task, teacher.tokenizer, labels)
        wanted = Wanted(self.logits, frozenset(self.features))
        batch = data.batch([0]).to(teacher.device)
        with torch.inference_mode():
            shown = teacher(batch, wanted)
        check_features(shown.features, self.features, teacher.model, "generate.features")
        formats = {name: self._format(name, shown.features[name], batch) for name in self.features}
        classes = None if shown.logits is None else shown.logits.classes
        codec = None
        if classes is not None:
            codec = self.codec or usual_codec(whole=task.adds_head)
        return AskedForStore(self, teacher, data, ordered_origins(data), wanted, codec, classes, formats)

    def _format(self, name: str, feature: Tensor, batch: Batch) -> FeatureFormat:
        if self.pooling is None:
            return FeatureFormat.of(name, feature, token_mask(batch), self.feature_type)
        if feature.ndim != 3:
            fix = "set generate.pooling=null"
            raise UserError(f"{name} gives {list(feature.shape)}: no tokens to pool", where="generate.pooling", fix=fix)
        pooled = self.pool(feature, batch)
        return FeatureFormat.of(name, pooled, None, self.feature_type, self.pooling)

    def pool(self, feature: Tensor, batch: Batch) -> Tensor:
        """Make one vector of each row's tokens, where that is asked for."""
        if self.pooling is None:
            return feature
        return pool(feature, token_mask(batch), self.pooling)  # type: ignore[arg-type]


@dataclass(frozen=True)
class AskedForStore:
    """A teacher and the rows that it is asked about.

    Attributes:
        generator: With the settings.
        teacher: Answers.
        data: The encoded rows.
        origins: int64 `[encoded rows]`, ascending: the source row that each was made of.
        wanted: What the teacher is asked for.
        codec: What is kept of the logits; None without logits.
        classes: Of the logits; None without them.
        formats: Feature → how it is stored.
    """

    generator: TeacherStore
    teacher: LiveModel
    data: data_encoding.Encoded
    origins: np.ndarray
    wanted: Wanted
    codec: Codec | None
    classes: int | None
    formats: dict[str, FeatureFormat]

    @torch.inference_mode()
    def answer(self, start: int, stop: int) -> pa.Table:
        """Return what the teacher says about the encoded rows that were made of the source rows `[start, stop)`."""
        first, last = np.searchsorted(self.origins, (start, stop))
        order: list[int] = []
        counts: list[int] = []
        parts: list[Encoded] = []
        features: dict[str, list[bytes]] = {name: [] for name in self.formats}
        for indices in by_length(self.data.lengths[first:last], self.generator.batch_size):
            batch = self.data.batch(first + indices).to(self.teacher.device)
            said = self.teacher(batch, self.wanted)
            own = items_of_rows(batch, said)
            order += indices.tolist()
            counts += own
            if self.codec is not None:
                assert said.logits is not None
                parts.append(encode(self.codec, said.logits, item_seeds(self.generator.seed, first + indices, own)))
            for name, kind in self.formats.items():
                vectors = self.generator.pool(said.features[name], batch)
                features[name] += kind.encode(vectors, None if self.generator.pooling else token_mask(batch))
        names = [] if self.codec is None else list(self.codec.describe(self.classes or 0)["columns"])
        columns: dict[str, list[Any]] = Encoded.join(parts).pack(counts) if parts else {name: [] for name in names}
        columns |= {kind.column: features[name] for name, kind in self.formats.items()}
        places = np.argsort(np.asarray(order, dtype=np.int64))
        kept = {name: pa.array([values[i] for i in places], pa.large_binary()) for name, values in columns.items()}
        numbers = {ROW: pa.array(self.origins[first:last]), ITEMS: pa.array([counts[i] for i in places], pa.int32())}
        return pa.table(numbers | kept)


def items_of_rows(batch: Batch, said: Signal) -> list[int]:
    """Return how many items each row of a batch has."""
    counts = batch.counted.flatten(1).sum(dim=1) if batch.counted.ndim > 1 else batch.counted.long()
    if said.logits is not None and len(said.logits) != int(counts.sum()):
        raise UserError(f"{len(said.logits)} items for {int(counts.sum())} outputs that count", where="task")
    return counts.tolist()


def item_seeds(seed: int, rows: np.ndarray, counts: list[int]) -> Tensor:
    """Return a seed for each item, int64 `[items]`, of its encoded row and its place in that row alone."""
    sizes = np.asarray(counts)
    starts = np.cumsum(sizes) - sizes
    places = np.arange(sizes.sum()) - np.repeat(starts, sizes)
    base = _mixed(np.full(len(rows), seed, dtype=np.uint64), np.asarray(rows, dtype=np.uint64))
    return torch.from_numpy(_mixed(np.repeat(base, sizes), places.astype(np.uint64)).view(np.int64))


def _mixed(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Hash pairs of numbers (the finaliser of SplitMix64, Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        z = one * np.uint64(0xD1342543DE82EF95) + (other + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))
