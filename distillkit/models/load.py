"""Load a model folder or hub id for a task."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer

from distillkit.errors import UserError
from distillkit.models.codes import is_packed, require_compressed_tensors, silent, unpack
from distillkit.models.gguf import gguf_in, require_gguf
from distillkit.models.live import LiveModel
from distillkit.tasks.base import Task


def load_tokenizer(path: str, key: str) -> Any:
    """Load a tokenizer from a folder or the hub."""
    path = _find(path, key)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise UserError(f"no tokenizer at '{path}' ({_reason(error)})", where=key) from error
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):  # what transformers makes where no file is
        raise UserError(f"no tokenizer at '{path}' (it has no vocabulary)", where=key)
    return tokenizer


def load_processor(path: str, task: Task, key: str) -> Any:
    """Load what prepares a model's inputs for a task: a tokenizer or an image processor."""
    if task.modality == "text":
        return load_tokenizer(path, key)
    try:
        return AutoImageProcessor.from_pretrained(_find(path, key))
    except (OSError, ValueError) as error:
        raise UserError(f"no image processor at '{path}' ({_reason(error)})", where=key) from error


def load_config(path: str, key: str) -> Any:
    """Load a model's config from a folder or the hub."""
    path = _find(path, key)
    try:
        return AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise UserError(f"no model at '{path}' ({_reason(error)})", where=key) from error


def load_live(
    path: str,
    task: Task,
    key: str,
    labels: list[str] | None = None,
    trained: bool = True,
    dtype: str = "float32",
) -> LiveModel:
    """Load a transformers model with its tokenizer; only safetensors or GGUF, no remote code.

    Args:
        path: Folder or hub id.
        task: Decides the model class.
        key: Config key for messages.
        labels: Class names of the data; None for tasks without classes, or to take those of the model.
        trained: Whether the model must already have a trained head for the task; if not, a head of another shape is
            replaced by a new one.
        dtype: "float32", "bfloat16", "float16", or "auto" for the folder's own.

    Raises:
        UserError: If it is not there, has other classes than the data or no trained head.
    """
    config = load_config(path, key)
    task.prepare(config, labels, trained, key)
    if is_packed(config):
        require_compressed_tensors()
    if gguf_in(path):
        require_gguf()
    try:
        with silent() if is_packed(config) else nullcontext():
            model, info = task.auto_class().from_pretrained(
                _find(path, key),
                config=config,
                dtype=dtype,
                use_safetensors=True,
                gguf_file=gguf_in(path),
                output_loading_info=True,
                ignore_mismatched_sizes=not trained,
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"cannot load the model at '{path}' ({_reason(error)})", where=key) from error
    if is_packed(config):
        unpack(model)
    body = [name for name, *_ in info["mismatched_keys"] if name.startswith(f"{model.base_model_prefix}.")]
    if body:
        raise UserError(f"the weights at '{path}' do not have the shapes of its config ({body[0]})", where=key)
    if trained and info["missing_keys"]:
        missing = ", ".join(sorted(info["missing_keys"])[:3])
        raise UserError(
            f"'{path}' has no trained head for {task.name} (not in its weights: {missing})",
            where=key,
            fix="fine-tune it first: distillkit train teacher=none student=pretrained student.path=…",
        )
    return LiveModel(model, load_processor(path, task, key), task)


def _find(path: str, key: str) -> str:
    """Return a folder's path without "~", or a hub id as it is; refuse a folder that is not there."""
    folder = Path(path).expanduser()
    if folder.is_dir():
        return str(folder)
    if path.startswith((".", "/", "~")) or path.count("/") > 1:
        raise UserError(f"no such model folder: {path}", where=key)
    return path


def _reason(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:200]


def pick_dtype(name: str, key: str) -> torch.dtype:
    """Turn "float32", "bfloat16" or "float16" into a torch dtype."""
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in known:
        raise UserError(f"unknown dtype '{name}'", where=key, fix=f"use {', '.join(known)}")
    return known[name]
