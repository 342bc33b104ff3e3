"""Time training steps of length-grouped against random batches. Prints a table and JSON.

python scripts/bench/length_grouping.py DATA TOKENIZER [--batch-size 32] [--steps 40] [--layers 6] [--hidden 384]

DATA is a folder with train.jsonl or a file with the columns text and label; TOKENIZER a folder or hub id. The model is
a BERT with random weights; the two kinds of batches take turns, so that other work on the machine slows both.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

import numpy as np
import torch
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

from distillkit.data.batches import BatchPlan
from distillkit.data.encode import Encoded, encode
from distillkit.data.files import FileDataset
from distillkit.data.labels import label_names
from distillkit.tasks.sequence_classification import SequenceClassification


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("tokenizer")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--hidden", type=int, default=384)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--threads", type=int, help="of torch; fewer than the cores where others use them too")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads or torch.get_num_threads())
    source: dict[str, Any] = {"path" if Path(arguments.data).is_dir() else "train": arguments.data}
    rows = FileDataset(**source, limit={"train": 50_000}).load()
    tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer)
    labels = label_names(rows)
    data = encode(rows, "train", SequenceClassification(arguments.max_length), tokenizer, labels)
    plans = {
        name: BatchPlan(data.lengths, arguments.batch_size, seed=0, group_by_length=grouped)
        for name, grouped in (("random", False), ("grouped", True))
    }
    padding = {name: padded(plan, data.lengths) for name, plan in plans.items()}
    seconds = timed(plans, data, model(arguments, len(tokenizer), len(labels)), arguments.steps)
    real = int(data.lengths.sum())
    print(f"{len(data):,} rows, {real:,} tokens, batches of {arguments.batch_size}, {torch.get_num_threads()} threads")
    for name in plans:
        share, milliseconds = padding[name] / real - 1, seconds[name] * 1e3
        print(f"{name:<8} {padding[name]:>12,} padded tokens ({share:5.1%} padding)   {milliseconds:7.1f} ms a step")
    result = {
        "padded_tokens": padding,
        "seconds_per_step": {name: round(value, 4) for name, value in seconds.items()},
        "fewer_tokens": round(padding["random"] / padding["grouped"], 3),
        "faster": round(seconds["random"] / seconds["grouped"], 3),
    }
    print(json.dumps(result))


def padded(plan: BatchPlan, lengths: np.ndarray) -> int:
    """Count the tokens of one epoch, with the padding."""
    batches = (lengths[plan.rows(step)] for step in range(plan.steps_per_epoch))
    return sum(int(batch.max()) * len(batch) for batch in batches)


def model(arguments: argparse.Namespace, vocabulary: int, labels: int) -> BertForSequenceClassification:
    """Make a model to train."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=arguments.hidden,
        num_hidden_layers=arguments.layers,
        num_attention_heads=arguments.hidden // 32,
        intermediate_size=4 * arguments.hidden,
        num_labels=labels,
    )
    return BertForSequenceClassification(config)


def timed(plans: dict[str, BatchPlan], data: Encoded, student: torch.nn.Module, steps: int) -> dict[str, float]:
    """Return the mean seconds of a training step of each plan; their steps are spread over an epoch."""
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-5)
    seconds = dict.fromkeys(plans, 0.0)
    for number in range(-2, steps):  # two to warm up
        for name, plan in plans.items():
            started = time.perf_counter()
            batch = data.batch(plan.rows(max(number, 0) * plan.steps_per_epoch // steps))
            loss = torch.nn.functional.cross_entropy(student(**batch.inputs).logits, batch.labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            seconds[name] += (time.perf_counter() - started) * (number >= 0)
    return {name: total / steps for name, total in seconds.items()}


if __name__ == "__main__":
    main()
