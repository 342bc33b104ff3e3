"""Time reading and encoding a dataset: anew, and again from the cache. Prints a table and JSON.

python scripts/bench/encoding.py DATA TOKENIZER [--rounds 3] [--workers N] [key=value of FileDataset ...]

DATA is a folder with train.jsonl or a file with the columns text and label; TOKENIZER a folder or hub id.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

from transformers import AutoTokenizer

from distillkit.data.encode import encode
from distillkit.data.files import FileDataset
from distillkit.data.labels import label_names
from distillkit.tasks.sequence_classification import SequenceClassification


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("tokenizer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--max-length", type=int, default=128)
    arguments = parser.parse_args()
    source: dict[str, Any] = {"path" if Path(arguments.data).is_dir() else "train": arguments.data}
    tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer)
    task = SequenceClassification(max_length=arguments.max_length)
    seconds: dict[str, list[float]] = {"read": [], "encode": [], "encode from the cache": []}
    for _ in range(arguments.rounds):
        with tempfile.TemporaryDirectory() as cache:
            started = time.perf_counter()
            rows = FileDataset(**source, cache=cache, num_workers=arguments.workers).load()
            labels = label_names(rows)
            seconds["read"].append(time.perf_counter() - started)
            for name in ("encode", "encode from the cache"):
                started = time.perf_counter()
                encoded = encode(rows, "train", task, tokenizer, labels)
                encoded.batch(range(32))
                seconds[name].append(time.perf_counter() - started)
    print(f"{len(encoded):,} rows, {int(encoded.lengths.sum()):,} tokens, {os.cpu_count()} cores")
    for name, times in seconds.items():
        print(f"{name:<24} median {median(times):6.2f} s   min {min(times):6.2f} s   max {max(times):6.2f} s")
    print(json.dumps({name: round(median(times), 3) for name, times in seconds.items()}))


if __name__ == "__main__":
    main()
