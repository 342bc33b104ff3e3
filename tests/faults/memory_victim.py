"""Compress with too little memory for the second step, and then with enough: `python -m tests.faults.memory_victim
FOLDER`. Prints the exit codes and the steps that worked, as JSON."""

from __future__ import annotations

import ctypes
import gc
import json
import resource
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertForSequenceClassification

from distillkit.commands import compress
from distillkit.compression.prune import MagnitudePrune
from distillkit.errors import report
from distillkit.models.live import LiveModel
from distillkit.models.tokenizers import ByteLevelBPE
from distillkit.schema import Config
from distillkit.tasks.sequence_classification import SequenceClassification
from tests.compressing import STEPS, command

LITTLE = 4 << 20  # bytes; one matrix of the model takes 16 MiB


def config(folder: Path) -> Config:
    made = command(folder)
    made.evaluate.resamples = 0
    made.compress.steps = {name: {**STEPS["prune"], "sparsity": share} for name, share in (("a", 0.3), ("b", 0.6))}
    sizes = {"hidden_size": 512, "intermediate_size": 8192, "num_hidden_layers": 1, "num_attention_heads": 2}
    names = {"id2label": {0: "bad", 1: "good"}, "label2id": {"bad": 0, "good": 1}}
    model = BertForSequenceClassification(BertConfig(vocab_size=258, pad_token_id=1, **sizes, **names))
    LiveModel(model, ByteLevelBPE(258).train([]), SequenceClassification(max_length=32)).save(folder / "start")
    return made


def taken() -> int:
    """Return the bytes of address space that this process has, after giving back what is free."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    started, worked = config(folder), []
    prune, before = MagnitudePrune.__call__, resource.getrlimit(resource.RLIMIT_AS)

    def step(self: MagnitudePrune, variant: Any, context: Any) -> Any:
        worked.append(context.folder.name)
        if worked == ["a", "b"]:
            resource.setrlimit(resource.RLIMIT_AS, (taken() + LITTLE, before[1]))
        try:
            return prune(self, variant, context)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, before)

    MagnitudePrune.__call__ = step  # type: ignore[method-assign]
    codes = []
    for _ in range(2):
        try:
            compress.main(started)
        except Exception as error:
            codes.append(report(error))
        else:
            codes.append(0)
    print("FOUND", json.dumps({"codes": codes, "worked": worked}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
