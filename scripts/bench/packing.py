"""Time training on packed rows against padded ones, in random order and grouped by length. Prints a table and JSON.

python scripts/bench/packing.py train.jsonl       # columns instruction, input, output
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from distillkit.data.batches import BatchPlan
from distillkit.data.encode import Encoded, encode
from distillkit.data.files import FileDataset
from distillkit.losses.objective import Objective
from distillkit.losses.task import CrossEntropy
from distillkit.models.live import LiveModel
from distillkit.models.packing import check_packing
from distillkit.models.tokenizers import ByteLevelBPE
from distillkit.tasks.causal_lm import CausalLM

COLUMNS = {"instruction": "instruction", "input": "input", "completion": "output"}


def main() -> None:
    """Take turns: each kind of batch trains for some steps, over and over. CPU seconds: others may be at work."""
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    live, data = load(arguments)
    check_packing(live.model)
    kinds = {
        "padded, random": (data, plan(data, arguments, grouped=False)),
        "padded, grouped": (data, plan(data, arguments, grouped=True)),
        "packed": (replace(data, packed=True), plan(data, arguments, grouped=False)),
    }
    optimizer = torch.optim.AdamW(live.model.parameters(), lr=1e-4)
    objective = Objective({"hard": {"weight": 1.0, "loss": CrossEntropy()}})
    rates: dict[str, list[float]] = {name: [] for name in kinds}
    filled: dict[str, list[float]] = {name: [] for name in kinds}
    for turn in range(1 + arguments.rounds):
        for name, (rows, batches) in kinds.items():
            seconds, tokens, positions = 0.0, 0, 0
            for step in range(turn * arguments.steps, (turn + 1) * arguments.steps):
                indices = batches.rows(step)
                started = time.process_time()
                positions += train(live, objective, optimizer, rows, indices)
                seconds += time.process_time() - started
                tokens += int(data.lengths[indices].sum())
            if turn:  # the first turn warms up
                rates[name].append(tokens / seconds)
                filled[name].append(tokens / positions)
    show(rates, filled, data, arguments)


def train(
    live: LiveModel, objective: Objective, optimizer: torch.optim.Optimizer, data: Encoded, indices: np.ndarray
) -> int:
    """Do one step; return how many positions the model computed."""
    batch = data.batch(indices)
    share, _ = objective(live(batch), None, batch, objective.counts(batch))
    share.backward()
    optimizer.step()
    optimizer.zero_grad()
    return batch.inputs["input_ids"].numel()


def load(arguments: argparse.Namespace) -> tuple[LiveModel, Encoded]:
    """Train a tokenizer on the rows, encode them, and make a model."""
    rows = FileDataset(train=str(arguments.data), columns=COLUMNS).load()
    table = rows.split("train")
    tokenizer = ByteLevelBPE(arguments.vocabulary).train(text for name in COLUMNS for text in table[name][:] if text)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=arguments.width,
        intermediate_size=3 * arguments.width,
        num_hidden_layers=arguments.layers,
        num_attention_heads=4,
        pad_token_id=tokenizer.pad_token_id,
    )
    task = CausalLM(max_length=arguments.max_length)
    live = LiveModel(LlamaForCausalLM(config), tokenizer, task)
    return live, encode(rows, "train", task, tokenizer, None)


def plan(data: Encoded, arguments: argparse.Namespace, grouped: bool) -> BatchPlan:
    """Plan batches as training does."""
    return BatchPlan(data.lengths, arguments.batch_size, 0, grouped)


def show(
    rates: dict[str, list[float]], filled: dict[str, list[float]], data: Encoded, arguments: argparse.Namespace
) -> None:
    """Print medians over the turns."""
    base = median(rates["padded, random"])
    quartiles = np.percentile(data.lengths, [25, 50, 75, 100]).astype(int).tolist()
    print(f"{len(data):,} rows; tokens a row, quartiles and longest: {quartiles}; {arguments.batch_size} rows a step")
    for name, values in rates.items():
        low, middle, high = min(values), median(values), max(values)
        share = f"{100 * median(filled[name]):.0f} % tokens"
        speed = f"{middle:>8,.0f} tokens/CPU s ({low:,.0f} … {high:,.0f})"
        print(f"{name:<16} {speed:<42} {share:<14} {middle / base:.2f}×")
    found = {name: {"tokens_per_cpu_second": median(v), "filled": median(filled[name])} for name, v in rates.items()}
    print(json.dumps({"lengths": quartiles, "settings": {k: str(v) for k, v in vars(arguments).items()}, **found}))


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    for name, value in (
        ("batch-size", 32),
        ("max-length", 1024),
        ("vocabulary", 4096),
        ("width", 256),
        ("layers", 4),
        ("rounds", 7),
        ("steps", 1),
        ("threads", 1),
    ):
        parser.add_argument(f"--{name}", type=int, default=value)
    return parser.parse_args()


if __name__ == "__main__":
    main()
