"""Measure what precision costs and gains: a classifier in PyTorch, ONNX Runtime float32 and int8; size, quality, speed.

python scripts/bench/compression.py --model FOLDER --data FOLDER [--batches 1 32] [--rounds 10] [--limit 4000]

MODEL is a trained classifier; DATA a folder with train.jsonl and validation.jsonl, columns text and label. Variants are
made once, in a folder that is thrown away; then each is timed in a process of its own, all in turn. Prints tables and
JSON. Quality is on the rows of `validation`, at most `--limit`; batches hold rows of median length.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cases import Measurement, measure, serve, show

from distillkit.commands.parts import load_model
from distillkit.compression.calibration import Calibration
from distillkit.compression.export import OnnxFloat
from distillkit.compression.int8 import OnnxInt8
from distillkit.compression.variant import Context, Variant
from distillkit.data.batches import by_length
from distillkit.data.encode import Encoded, encode
from distillkit.data.files import FileDataset
from distillkit.data.labels import label_names
from distillkit.evaluation.size import size_on_disk
from distillkit.schema import TrainSettings
from distillkit.signals import Batch
from distillkit.tasks.sequence_classification import SequenceClassification

CALLS = {1: 40}  # of a turn, by the rows of a batch; for others:
FEW = 3
BASE = "onnx float32"
STEPS: dict[str, Callable[[], Any]] = {
    BASE: OnnxFloat,
    "onnx int8": OnnxInt8,
    "onnx int8 smooth": partial(OnnxInt8, smooth=0.5),
    "onnx int8 static": partial(OnnxInt8, activations="static", method="percentile", smooth=0.5),
}


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--limit", type=int, default=4000)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--case")
    parser.add_argument("--folder")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    task, rows, labels = _read(arguments)
    if arguments.case:
        return _be(arguments, task, rows, labels)
    with tempfile.TemporaryDirectory() as folder:
        found = _make(arguments, task, rows, labels, Path(folder))
        timed = {}
        for size in arguments.batches:
            given = ["--model", arguments.model, "--data", arguments.data, "--batches", str(size)]
            given += ["--threads", str(arguments.threads), "--max-length", str(arguments.max_length)]
            cases = {name: [*given, "--case", name, "--folder", entry["folder"]] for name, entry in found.items()}
            timed[size] = measure(cases, arguments.rounds)
    _tell(arguments, found, timed)
    return None


def _read(arguments: argparse.Namespace) -> tuple[SequenceClassification, Any, list[str]]:
    task = SequenceClassification(max_length=arguments.max_length)
    rows = FileDataset(path=arguments.data).load()
    return task, rows, label_names(rows)


def _make(arguments: Any, task: Any, rows: Any, labels: list[str], folder: Path) -> dict[str, dict[str, Any]]:
    """Write the variants and judge them: name → folder, bytes and accuracy."""
    start = load_model(arguments.model, task, "--model", labels, torch.device("cpu"))
    data = encode(rows, "validation", task, start.tokenizer, labels)
    known = Calibration(partial(encode, rows, "train", task, start.tokenizer, labels))
    found = {"pytorch": {"folder": arguments.model, "accuracy": _accuracy(start, data, arguments.limit)}}
    variant = Variant(start)
    for name, step in STEPS.items():
        context = Context(data.batch(range(8)), TrainSettings(), None, folder / name, known)
        made = step()(variant, context)
        if name == BASE:
            variant = made
        accuracy = _accuracy(made.model, data, arguments.limit)
        found[name] = {"folder": str(made.model.folder), "accuracy": accuracy}
    for entry in found.values():
        entry["bytes"] = size_on_disk(entry["folder"])
    return found


@torch.no_grad()
def _accuracy(model: Any, data: Encoded, limit: int) -> float:
    right = total = 0
    for indices in by_length(data.lengths[:limit], 32):
        batch = data.batch(indices)
        logits = model(batch).logits
        right += int((logits.rows(0, len(logits)).argmax(dim=-1) == batch.labels).sum())
        total += len(batch.labels)
    return right / total


def _be(arguments: argparse.Namespace, task: Any, rows: Any, labels: list[str]) -> None:
    """Answer one batch again and again."""
    model = load_model(arguments.folder, task, "--folder", labels, torch.device("cpu"))
    batch = _median(encode(rows, "validation", task, model.tokenizer, labels), arguments.batches[0])
    calls = CALLS.get(arguments.batches[0], FEW)

    @torch.inference_mode()
    def run() -> None:
        for _ in range(calls):
            model(batch)

    serve(run, "cpu")


def _median(data: Encoded, size: int) -> Batch:
    order = np.argsort(data.lengths, kind="stable")
    start = max(0, len(order) // 2 - size // 2)
    return data.batch(order[start : start + size])


def _tell(arguments: Any, found: dict[str, Any], timed: dict[int, dict[str, Measurement]]) -> None:
    for size, cases in timed.items():
        calls = CALLS.get(size, FEW)
        show(f"{calls} calls of {size} rows, {arguments.threads} threads", cases, BASE)
    base = found[BASE]
    print(f"{'':<20}{'MB':>8}{'of it':>8}{'accuracy':>10}" + "".join(f"{f'speed at {size}':>14}" for size in timed))
    for name, entry in found.items():
        speeds = [cases[BASE].seconds / cases[name].seconds for cases in timed.values()]
        print(
            f"{name:<20}{entry['bytes'] / 1e6:>8.1f}{entry['bytes'] / base['bytes']:>8.3f}{entry['accuracy']:>10.4f}"
            + "".join(f"{speed:>14.2f}" for speed in speeds)
        )
    document = {
        "torch": torch.__version__,
        "threads": arguments.threads,
        "variants": {name: {key: entry[key] for key in ("bytes", "accuracy")} for name, entry in found.items()},
        "timed": {str(size): {name: asdict(it) for name, it in cases.items()} for size, cases in timed.items()},
    }
    if arguments.output is None:
        print(json.dumps(document))
    else:
        arguments.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
