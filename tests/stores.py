"""Teacher stores for the tests, made without the command line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from distillkit.cache.fingerprints import weights_fingerprint
from distillkit.commands.stored_outputs import FOLDER, StoredOutputs
from distillkit.data.digest import rows_digest
from distillkit.data.encode import Encoded, encode
from distillkit.data.rows import Rows
from distillkit.generation.teacher_store import TeacherStore
from distillkit.models.cached import CachedTeacher
from distillkit.models.live import LiveModel
from distillkit.signals import LOGITS, Wanted


def make_store(folder: Path, live: LiveModel, rows: Rows, **settings) -> CachedTeacher:
    """Ask a teacher about every row, and return what answers from the store."""
    generate = TeacherStore(**{"batch_size": 5, "shard_rows": 8} | settings)
    live.eval().requires_grad_(False)
    product = StoredOutputs(folder, generate, rows, live.task, live)
    origin = {"rows": rows_digest(rows.split("train")), "teacher": weights_fingerprint(live.model)}
    product.shards.begin(origin)
    asked = generate.prepare(live, rows, live.task)
    for number in product.shards.missing():
        product.write(number, asked.answer(*product.shards.bounds(number)))
    product.finish({"teacher": str(folder / "teacher"), "dataset": rows.name}, {})
    return CachedTeacher(str(folder / FOLDER))


def answered_rows(live: LiveModel, rows: Rows, teacher: CachedTeacher, wanted: Wanted = LOGITS) -> Encoded:
    """The training rows of a store, which bring its answers along."""
    data = encode(rows, "train", live.task, live.tokenizer, live.labels if live.task.has_classes else None)
    teacher.check(live.task)
    teacher.check_encoded(data)
    return replace(data, said=teacher.answers(wanted, live.task))
