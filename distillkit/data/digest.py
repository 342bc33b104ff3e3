"""What encoded rows depend on, hashed: rows, tokenizer, task, and the code that encodes."""

from __future__ import annotations

import hashlib
import io
import json
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import tokenizers
import transformers
from datasets import Dataset

STREAMED = 100_000  # rows that are hashed at a time
OTHERS = ("builtins", "typing")  # modules of classes that every class derives from
UNSAVED = (  # attributes of a tokenizer that change what it does and are not always saved
    "padding_side",
    "truncation_side",
    "model_max_length",
    "model_input_names",
    "split_special_tokens",
    "add_prefix_space",
    "_add_bos_token",
    "_add_eos_token",
)
ELSEWHERE = ("is_local", "local_files_only", "name_or_path", "_name_or_path")  # where a tokenizer was loaded from


def digest(*parts: Any) -> str:
    """Hash values that JSON can write."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:40]


def table_digest(table: pa.Table) -> str:
    """Hash the values, names and types of a table, however it is cut into chunks."""
    sink = _Hash()
    schema = table.schema.remove_metadata()
    with pa.PythonFile(sink, "w") as file, pa.ipc.new_stream(file, schema) as stream:
        for start in range(0, len(table), STREAMED):
            piece = table.slice(start, STREAMED).combine_chunks()
            stream.write_table(piece.replace_schema_metadata(None))
    return sink.hash.hexdigest()


def rows_digest(rows: Dataset) -> str:
    """Hash a split."""
    chosen = rows._indices  # rows that are picked by index: hashed as they lie, and what is picked
    whole = table_digest(rows.data.table)
    return whole if chosen is None else digest(whole, table_digest(chosen.table))


def tokenizer_digest(tokenizer: Any) -> str:
    """Hash everything that a tokenizer (or another processor of transformers) saves, wherever it was loaded from."""
    settings = {name: repr(vars(tokenizer).get(name)) for name in UNSAVED}
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        return digest([[path.name, _content(path)] for path in files], settings)


def code_digest() -> str:
    """Hash the code of this folder."""
    return _code(Path(__file__).parent)


def _content(path: Path) -> str:
    if path.suffix != ".json":
        return hashlib.sha256(path.read_bytes()).hexdigest()
    settings = json.loads(path.read_text(encoding="utf-8"))
    if path.name == "tokenizer.json":  # how it was last called
        settings |= {"truncation": None, "padding": None}
    return digest({name: value for name, value in settings.items() if name not in ELSEWHERE})


def task_digest(task: Any) -> str:
    """Hash the class of a task, its settings, and the code of tasks and encoding."""
    modules = [sys.modules[cls.__module__] for cls in type(task).__mro__ if cls.__module__ not in OTHERS]
    folders = sorted({Path(__file__).parent, *(Path(str(module.__file__)).parent for module in modules)})
    return digest(_state(task), [_code(folder) for folder in folders], transformers.__version__, tokenizers.__version__)


@cache
def _code(folder: Path) -> str:
    return digest([[source.name, source.read_text(encoding="utf-8")] for source in sorted(folder.glob("*.py"))])


def _state(value: Any) -> Any:
    """Turn settings into what JSON can write; what has no attributes stands for itself."""
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, list | tuple):
        return [_state(inner) for inner in value]
    if isinstance(value, dict):
        return [[_state(key), _state(inner)] for key, inner in value.items()]
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    if not isinstance(getattr(value, "__dict__", None), dict):
        return repr(value)
    return [_state(type(value)), _state(vars(value))]


class _Hash(io.RawIOBase):
    """A file that keeps only a hash of what is written to it."""

    def __init__(self) -> None:
        self.hash = hashlib.sha1(usedforsecurity=False)

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.hash.update(data)
        return len(data)
