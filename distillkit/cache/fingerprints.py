"""What a teacher, a tokenizer, a task and encoded rows are told apart by."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from distillkit.data.digest import digest, table_digest
from distillkit.data.encode import Encoded
from distillkit.tasks.base import Task

PIECE = 1 << 24  # bytes of a tensor that are copied from a device at a time
# Settings of a task, and columns of encoded rows, that a teacher's answer does not depend on.
OF_EVALUATION = ("metric_names", "metric_columns", "best_metric", "positive", "generate", "packing")
UNREAD = ("label", "score", "positive", "bytes", "references", "teacher_logits")


def weights_fingerprint(model: torch.nn.Module) -> str:
    """Hash the names, types, shapes and values of a model's weights, wherever they were loaded from."""
    sink = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        sink.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        flat = tensor.detach().contiguous().view(-1)
        for piece in flat.split(PIECE // tensor.element_size()):
            sink.update(piece.cpu().view(torch.uint8).numpy())
    return sink.hexdigest()[:40]


def vocabulary_fingerprint(processor: Any) -> str:
    """Hash which token each id stands for; of an image processor, its settings."""
    if isinstance(processor, PreTrainedTokenizerBase):
        return digest(sorted(processor.get_vocab().items()))
    return digest(processor.to_dict())


def task_settings(task: Task) -> dict[str, Any]:
    """Return the settings of a task that decide what a model reads and which of its outputs count."""
    plain = (str, int, float, bool, type(None), list, tuple)
    kept = {n: v for n, v in vars(task).items() if isinstance(v, plain) and n not in OF_EVALUATION}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in kept.items()}


def read_columns(data: Encoded) -> list[str]:
    """Return the columns of encoded rows that decide what a model reads and which of its outputs count."""
    return [name for name in data.rows.column_names if name not in UNREAD]


def encoded_fingerprint(data: Encoded, columns: Sequence[str]) -> str | None:
    """Hash some columns of encoded rows; None if one is not there."""
    if not set(columns) <= set(data.rows.column_names):
        return None
    return table_digest(data.rows.data.table.select(list(columns)))
