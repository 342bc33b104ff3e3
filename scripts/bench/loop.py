"""Measure the training loop itself: what it adds to a step, how two processes scale, and whether memory grows.

overhead  steps of `fit` against the same forward and backward passes and optimiser steps in a bare loop, on batches
          that are there already; both in one process, in turn, and by CPU seconds too
scaling   items a second of two processes of one thread against one process of one thread, each with as many rows a
          step; and of two runs that have nothing to do with each other, at once: what the machine gives
memory    resident memory of a process after each tenth of many tiny steps

Prints tables and JSON.

python scripts/bench/loop.py                                       # all three
python scripts/bench/loop.py memory --steps 100000
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from accelerate import Accelerator
from transformers import BertConfig, BertForSequenceClassification

from distillkit.data.encode import Encoded, encode
from distillkit.data.files import FileDataset
from distillkit.losses.objective import Objective
from distillkit.losses.task import CrossEntropy
from distillkit.models.live import LiveModel
from distillkit.models.tokenizers import ByteLevelBPE
from distillkit.schema import TrainSettings
from distillkit.tasks.sequence_classification import SequenceClassification
from distillkit.training.loop import fit
from distillkit.training.records import Records
from distillkit.training.run import Run

TEXT = "a fine and happy day after so many grey ones that nobody could count them any more"
PARTS = ("overhead", "scaling", "memory")


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=PARTS, choices=PARTS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=100_000, help="of the part memory")
    parser.add_argument("--output", type=Path, help="write the JSON here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {"torch": torch.__version__}
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_rows(folder / "train.jsonl", 512)
        if "overhead" in arguments.parts:
            result["overhead"] = overhead(folder, arguments.rounds)
        if "scaling" in arguments.parts:
            result["scaling"] = scaling(folder, arguments.rounds)
        if "memory" in arguments.parts:
            result["memory"] = memory(folder, arguments.steps)
    text = json.dumps(result, indent=1)
    print(text)
    if arguments.output is not None:
        arguments.output.write_text(text + "\n", encoding="utf-8")


def write_rows(path: Path, count: int) -> None:
    """Write rows of equal length."""
    words = TEXT.split()
    lines = [
        json.dumps({"text": " ".join(words[(i + j) % len(words)] for j in range(24)), "label": "ab"[i % 2]})
        for i in range(count)
    ]
    path.write_text("\n".join(lines), encoding="utf-8")


def student(layers: int, width: int) -> LiveModel:
    """Make a model with random weights."""
    torch.manual_seed(0)
    tokenizer = ByteLevelBPE(vocab_size=400).train([TEXT])
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // 32),
        intermediate_size=4 * width,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LiveModel(BertForSequenceClassification(config), tokenizer, SequenceClassification(max_length=64))


def rows(folder: Path, model: LiveModel) -> Encoded:
    """Encode the rows."""
    loaded = FileDataset(train=str(folder / "train.jsonl"), cache=False).load()
    return encode(loaded, "train", model.task, model.tokenizer, ["a", "b"])


def training(folder: Path, model: LiveModel, data: Encoded, **settings: Any) -> Run:
    """Return a run that only trains."""
    accelerator = Accelerator(cpu=True)
    return Run(
        student=model,
        teacher=None,
        objective=Objective({"hard": {"weight": 1.0, "loss": CrossEntropy()}}),
        data=data,
        settings=TrainSettings(checkpoint_every=None, **settings),
        accelerator=accelerator,
        records=Records(folder / "metrics.jsonl", accelerator),
        folder=folder / "checkpoints",
        digest="",
    )


def overhead(folder: Path, rounds: int, steps: int = 40) -> dict[str, float]:
    """Compare `fit` with a bare loop over ready batches; a step takes about 50 ms."""
    model = student(layers=4, width=256)
    data = rows(folder, model)
    batches = [data.batch(range(i * 8, i * 8 + 8)) for i in range(steps)]

    def bare() -> None:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
        model.train()
        for batch in batches:
            loss = torch.nn.functional.cross_entropy(model.model(**batch.inputs).logits, batch.labels)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

    def ours() -> None:
        fit(training(folder, model, data, max_steps=steps, batch_size=8, learning_rate=1e-5))

    taken: dict[str, list[tuple[float, float]]] = {"bare": [], "ours": []}
    for _ in range(rounds + 1):
        for name, loop in (("bare", bare), ("ours", ours)):
            clock, cpu = time.perf_counter(), time.process_time()
            loop()
            taken[name].append((time.perf_counter() - clock, time.process_time() - cpu))
    seconds = {name: [median(turn[k] for turn in turns[1:]) / steps for k in (0, 1)] for name, turns in taken.items()}
    return {
        "bare_ms_a_step": round(1e3 * seconds["bare"][0], 2),
        "ours_ms_a_step": round(1e3 * seconds["ours"][0], 2),
        "overhead": round(seconds["ours"][0] / seconds["bare"][0] - 1, 4),
        "overhead_cpu": round(seconds["ours"][1] / seconds["bare"][1] - 1, 4),
    }


def scaling(folder: Path, rounds: int) -> dict[str, Any]:
    """Compare the items a second of one process and of two, each with 16 rows a step and one thread.

    `apart` is what the machine gives to two processes that share nothing but it: two runs of one process, at once.
    """
    student(layers=4, width=256).save(folder / "small")
    speeds: dict[str, list[float]] = {"one": [], "two": [], "apart": []}
    for turn in range(rounds):
        for case, values in speeds.items():
            outputs = [folder / f"scaling-{case}-{turn}-{run}" for run in range(2 if case == "apart" else 1)]
            runs = [start_training(folder, output, processes=2 if case == "two" else 1) for output in outputs]
            if any(run.wait() for run in runs):
                raise RuntimeError(f"a run of the case {case} failed; see the error above")
            values.append(sum(map(items_a_second, outputs)))
    rates = {case: round(median(values), 1) for case, values in speeds.items()}
    return {
        "items_a_second": rates,
        "faster": round(rates["two"] / rates["one"], 3),
        "machine": round(rates["apart"] / rates["one"], 3),
    }


def start_training(folder: Path, output: Path, processes: int) -> subprocess.Popen[bytes]:
    """Start a training of some steps, with 16 rows a process and step."""
    argv = ["train", "task=sequence_classification", f"dataset.train={folder / 'train.jsonl'}"]
    argv += ["dataset.cache=false", f"student.path={folder / 'small'}", "train.max_steps=150"]
    argv += [f"train.batch_size={16 * processes}", "train.checkpoint_every=null", "task.max_length=64"]
    argv += [f"launch.num_processes={processes}", f"output_dir={output}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-m", "distillkit", *argv], stdout=subprocess.DEVNULL, env=environment)


def items_a_second(output: Path) -> float:
    """Read from a run's report how fast it was."""
    report = json.loads((output / "report.json").read_text(encoding="utf-8"))["train"]
    return float(report["items"]) / float(report["seconds"])


def memory(folder: Path, steps: int) -> dict[str, Any]:
    """Watch resident memory over many tiny steps, from the first tenth on."""
    model = student(layers=1, width=32)
    held: list[float] = []
    every, done = steps // 10, 0

    def note() -> None:
        nonlocal done
        done += 1
        if done % every == 0:
            gc.collect()
            pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
            held.append(pages * 4096 / 2**20)

    run = training(folder, model, rows(folder, model), max_steps=steps, batch_size=2, learning_rate=1e-5)
    run.after_step = note
    fit(run)
    return {"steps": steps, "mib": [round(mib, 1) for mib in held], "growth": round(held[-1] / held[0] - 1, 4)}


if __name__ == "__main__":
    main()
