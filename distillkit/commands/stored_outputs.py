"""What `generate-pseudo` makes of a teacher's outputs: a store, described and compared with the teacher."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from distillkit.cache.answers import decoded
from distillkit.cache.examples import examples_of
from distillkit.cache.fingerprints import (
    encoded_fingerprint,
    read_columns,
    task_settings,
    vocabulary_fingerprint,
)
from distillkit.cache.quality import Quality
from distillkit.cache.shards import Shards, writing
from distillkit.cache.store import FORMAT, ITEMS, VERSION, Store, arrow, seal
from distillkit.commands.pseudo_rows import Made
from distillkit.data.encoder import Encoder
from distillkit.data.rows import Rows
from distillkit.errors import UserError
from distillkit.generation.teacher_store import AskedForStore, TeacherStore
from distillkit.models.live import LiveModel
from distillkit.reporting.files import markdown_table
from distillkit.signals import Wanted
from distillkit.tasks.base import Task

FOLDER = "teacher-store"


class StoredOutputs:
    """A teacher store.

    Args:
        folder: Of the run.
        generate: What fills it.
        rows: What the teacher is asked about.
        task: Of the teacher.
        live: The teacher.
    """

    def __init__(self, folder: Path, generate: TeacherStore, rows: Rows, task: Task, live: LiveModel) -> None:
        self.folder = folder / FOLDER
        self.generate = generate
        self.rows = rows
        self.task = task
        self.live = live
        self.shards = Shards(self.folder, generate.total(rows), generate.shard_rows, "arrow")

    def write(self, number: int, answers: Any) -> None:
        """Write the answers of a shard."""
        self.shards.write(number, answers, arrow)

    def finish(self, facts: Mapping[str, Any], settings: Mapping[str, Any]) -> Made:
        """Describe the store, and compare it with the teacher.

        Args:
            facts: What was run.
            settings: Of the generator.
        """
        asked = self.generate.prepare(self.live, self.rows, self.task)
        described = self._describe(asked, facts, settings)
        with writing(self.folder):
            seal(self.folder, described)
        store = Store(str(self.folder), "output_dir")
        quality = None if asked.codec is None else compare(store, asked, self.generate.sample)
        described["quality"] = quality
        with writing(self.folder):
            seal(self.folder, described)
        size, items = described["size"], described["items"]
        lines = store_lines(described)
        return Made(
            facts={
                "folder": str(self.folder),
                "rows": described["encoded"]["rows"],
                "items": items,
                **size,
                "quality": quality,
            },
            text=f"{items:,} items of {facts['dataset']} from {facts['teacher']}, in {self.folder}",
            details=markdown_table(["of the store", "value"], [list(line) for line in lines]),
            examples=tuple(f"  {name}: {value}" for name, value in lines),
        )

    def _describe(self, asked: AskedForStore, facts: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
        shards, inside, items, origin = [], 0, 0, self.shards.origin()
        for number in range(len(self.shards)):
            self.shards.check(number)
            found = self.shards.facts(number)
            assert found is not None
            table = pa.ipc.open_stream(pa.memory_map(str(self.shards.path(number)))).read_all()
            shards.append({"file": self.shards.path(number).name, **found})
            items += int(np.sum(table[ITEMS].to_numpy()))
            inside += sum(pc.sum(pc.binary_length(table[kind.column])).as_py() or 0 for kind in asked.formats.values())
        size = sum(int(shard["bytes"]) for shard in shards)
        columns, tokenizer = read_columns(asked.data), self.live.tokenizer
        split = self.rows.split(self.generate.split)
        labels = self.live.labels if self.task.has_classes else None
        encoder = Encoder.of(self.task, tokenizer, labels)
        return {
            "format": FORMAT,
            "version": VERSION,
            "task": {"name": self.task.name, "settings": task_settings(self.task)},
            "output_kind": self.task.output_kind,
            "teacher": {
                "path": facts["teacher"],
                "dtype": str(self.live.model.dtype).removeprefix("torch."),
                "weights": origin["teacher"],
                "config": json.loads(self.live.model.config.to_json_string()),
            },
            "tokenizer": {
                "vocabulary": vocabulary_fingerprint(tokenizer),
                "size": len(tokenizer) if self.task.modality == "text" else None,
            },
            "dataset": {
                "name": facts["dataset"],
                "split": self.generate.split,
                "rows": len(split),
                "rows_digest": origin["rows"],
            },
            "encoded": {
                "rows": len(asked.data),
                "tokens": int(asked.data.lengths.sum()),
                "longest": int(asked.data.lengths.max()),
                "columns": columns,
                "fingerprint": encoded_fingerprint(asked.data, columns),
                "examples": examples_of(encoder, split, asked.data, columns),
            },
            "items": items,
            "classes": asked.classes,
            "labels": labels,
            "codec": None if asked.codec is None else asked.codec.describe(asked.classes or 0),
            "features": [kind.describe() for kind in asked.formats.values()],
            "settings": dict(settings),
            "sample": self.generate.sample,
            "size": {
                "bytes": size,
                "bytes_per_item": (size - inside) / max(items, 1),
                "feature_bytes_per_row": inside / len(asked.data),
            },
            "quality": None,
            "shards": shards,
        }


def store_is_whole(folder: Path) -> bool:
    """Tell whether every file of a run's finished store is there; so it is if the run makes none."""
    path = folder / FOLDER
    if not path.exists():
        return True
    try:
        Store(str(path), "output_dir")
    except UserError:
        return False
    return True


def compare(store: Store, asked: AskedForStore, sample: int) -> dict[str, Any]:
    """Compare a store with its teacher on rows at equal distances, of about `sample` items."""
    count = min(len(store), max(1, round(sample * len(store) / max(store.facts["items"], 1))))
    rows = np.unique(np.linspace(0, len(store) - 1, count).round().astype(np.int64))
    quality = Quality(store.facts["classes"], store.facts["output_kind"])
    for start in range(0, len(rows), asked.generator.batch_size):
        some = rows[start : start + asked.generator.batch_size]
        with torch.no_grad():
            said = asked.teacher(asked.data.batch(some).to(asked.teacher.device), Wanted()).logits
        assert said is not None
        quality.add(said, decoded(store, some))
    return quality.report()


def store_lines(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Say what a description says, for people."""
    size, quality = facts["size"], facts["quality"] or {}
    lines = [("items", f"{facts['items']:,}"), ("size", f"{size['bytes'] / 1e6:,.1f} MB")]
    if facts["codec"] is not None:
        lines.append(("bytes per item", f"{size['bytes_per_item']:.1f}"))
    if facts["features"]:
        lines.append(("feature bytes per row", f"{size['feature_bytes_per_row']:,.0f}"))
    names = {
        "covered_mass": ("covered mass", "{:.2%}"),
        "kl": ("KL(teacher ‖ decoded)", "{:.2e} nats"),
        "gradient_cosine": ("gradient cosine", "{:.6f}"),
        "summed_gradient_cosine": ("summed gradient: cosine", "{:.6f}"),
        "summed_gradient_length": ("summed gradient: length", "{:.4f}"),
        "gradient_bias": ("gradient bias", "{:.2e}"),
    }
    return lines + [
        (title, form.format(quality[n])) for n, (title, form) in names.items() if quality.get(n) is not None
    ]
