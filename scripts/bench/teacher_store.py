"""Compare the formats of a teacher store on what a real language model says: size, and what a student is told.

A student gives the gradients of forward KL at temperature 1: by its logits (cosine, mean over tokens) and by its output
head, summed over all tokens (cosine; noise of one draw and bias over draws, as shares of the gradient's length).

python scripts/bench/teacher_store.py                                   # trains a small LM on Python's library
python scripts/bench/teacher_store.py --data FOLDER --vocabulary 50304  # on train, validation and test files
python scripts/bench/teacher_store.py --data FOLDER --teacher FOLDER    # of a model of your own
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from math import sqrt
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from store_formats import CODECS, PEERS, Format, label, stored

from distillkit.data.encode import encode
from distillkit.data.files import FileDataset
from distillkit.data.stdlib import StdlibDataset
from distillkit.models.load import load_live
from distillkit.signals import HeadLogits, chunks
from distillkit.tasks.causal_lm import CausalLM

CHUNK, LENGTH = 1 << 23, 256  # logits, tokens


@dataclass
class Row:
    """What one format came to."""

    bytes: float  # a token
    mass: float  # of the teacher that is listed
    kl: float | None  # nats, KL(teacher ‖ decoded)
    cosine: float  # of a token's gradient by the logits
    batch_cosine: float  # of all tokens' gradient by the head
    noise: float  # of one draw of that: ‖error‖ / ‖gradient‖
    bias: float  # likewise, of the mean over draws
    bias_error: float  # standard error of the bias
    encode_us: float  # CPU microseconds a token, with decoding and targets


def main() -> None:
    """Measure every format."""
    options = parse()
    torch.set_num_threads(options.threads)
    path = options.teacher or train(options)
    teacher = states(path, options)
    teacher = replace(teacher, scale=teacher.scale * options.sharpness)
    # Without another model, a student that knows half: its logits are half the teacher's.
    student = states(options.student, options) if options.student else replace(teacher, scale=teacher.scale / 2)
    formats: dict[str, Format] = dict(PEERS)
    formats |= {label(codec): stored(codec) for codec in CODECS}
    rows = {name: measure(format_, teacher, student, options.draws) for name, format_ in formats.items()}
    facts = describe(teacher, student, path)
    show(rows, facts)
    text = json.dumps({"teacher": facts, "formats": {name: asdict(row) for name, row in rows.items()}}, indent=1)
    if options.output is None:
        print(text)
    else:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(text + "\n", encoding="utf-8")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", help="folder of a causal LM; without it one is trained")
    parser.add_argument("--student", help="folder of another with the same tokenizer")
    parser.add_argument("--data", help="folder of train, validation and test files; without it the standard library")
    parser.add_argument("--work", type=Path, default=Path("outputs/bench/teacher_store"), help="of what is trained")
    parser.add_argument("--vocabulary", type=int, default=16_384, help="of a model that is trained")
    parser.add_argument("--steps", type=int, default=300, help="it is trained for")
    parser.add_argument("--tokens", type=int, default=1_024)
    parser.add_argument("--sharpness", type=float, default=1.0, help="the teacher's logits are multiplied by it")
    parser.add_argument("--draws", type=int, default=8, help="of a format with random draws")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, help="write the JSON here")
    return parser.parse_args()


def train(options: argparse.Namespace) -> str:
    """Train a small LM with distillkit, unless it is there already; return its folder."""
    folder = options.work / f"{options.vocabulary}-{options.steps}"
    if not (folder / "model").exists():
        sizes = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4, "tie_word_embeddings": True}
        tokenizer = {"_target_": "distillkit.models.tokenizers.ByteLevelBPE", "vocab_size": options.vocabulary}
        settings = {
            "output_dir": folder,
            "task.max_length": LENGTH,
            "student.model_type": "llama",
            "+student.config": node(sizes | {"num_attention_heads": 4, "num_key_value_heads": 4}),
            "student.tokenizer": node(tokenizer),
            "train.max_steps": options.steps,
            "train.learning_rate": 2e-3,
            "train.batch_size": 16,
            "train.precision": "bf16",
        }
        chosen = ["task=causal_lm", "loss=hard", "student=from_config"]
        chosen += ["dataset=stdlib"] if options.data is None else [f"dataset.path={options.data}"]
        given = [f"{key}={value}" for key, value in settings.items()]
        subprocess.run([sys.executable, "-m", "distillkit", "train", *chosen, *given], check=True)
    return str(folder / "model")


def node(values: Mapping[str, object]) -> str:
    """Write a mapping as the command line takes it."""
    return "{" + ", ".join(f"{key}: {value}" for key, value in values.items()) + "}"


@torch.no_grad()
def states(path: str, options: argparse.Namespace) -> HeadLogits:
    """Return a model's hidden states and head over the first tokens of the test split."""
    task = CausalLM(max_length=LENGTH)
    live = load_live(path, task, "--teacher").eval()
    rows = (StdlibDataset() if options.data is None else FileDataset(path=options.data, limit=40)).load()
    data = encode(rows, "test", task, live.tokenizer, None)
    parts: list[HeadLogits] = []
    for start in range(0, len(data), 8):
        said = live(data.batch(range(start, min(start + 8, len(data))))).logits
        assert isinstance(said, HeadLogits)
        parts.append(said)
        if sum(map(len, parts)) >= options.tokens:
            break
    hidden = torch.cat([part.hidden for part in parts])[: options.tokens]
    return HeadLogits(hidden, parts[0].weight, parts[0].bias, parts[0].scale, parts[0].soft_cap)


@torch.no_grad()
def measure(format_: Format, teacher: HeadLogits, student: HeadLogits, draws: int) -> Row:
    """Measure one format; one without random draws says the same every time and is asked once."""
    size = mass = divergence = cosines = seconds = 0.0
    full = torch.zeros_like(student.weight)
    sums, squares = torch.zeros_like(full), 0.0
    draws = draws if format_.random else 1
    spreads = True
    for draw in range(draws):
        found = torch.zeros_like(full)
        for start, stop in chunks(len(teacher), teacher.classes, CHUNK):
            log_p = teacher.rows(start, stop).float().log_softmax(dim=1)
            q = student.rows(start, stop).float().softmax(dim=1)
            began = time.process_time()
            told = format_.tell(log_p, q, torch.arange(start, stop) + draw * len(teacher))
            seconds += time.process_time() - began
            gradient = q * told.target.sum(dim=1, keepdim=True) - told.target
            own, hidden = q - log_p.exp(), student.hidden[start:stop]
            found += gradient.T @ hidden
            cosines += torch.cosine_similarity(gradient, own, dim=1).sum().item()
            size, mass = size + told.size, mass + told.mass.sum().item()
            if draw == 0:
                full += own.T @ hidden
                spreads = spreads and told.spread is not None
                if told.spread is not None:
                    divergence += (log_p.exp() * (log_p - told.spread)).sum().item()
        sums += found
        squares += found.square().sum().item()
    length, asked = full.norm().item(), draws * len(teacher)
    mean = sums / draws
    variance = max(squares - draws * mean.square().sum().item(), 0.0) / max(draws - 1, 1)  # of one draw
    bias = max((mean - full).square().sum().item() - variance / draws, 0.0)
    return Row(
        bytes=size / asked,
        mass=mass / asked,
        kl=divergence / len(teacher) if spreads else None,
        cosine=cosines / asked,
        batch_cosine=torch.cosine_similarity(found.double().flatten(), full.double().flatten(), dim=0).item(),
        noise=sqrt(variance + bias) / length,
        bias=sqrt(bias) / length,
        bias_error=sqrt(variance / draws) / length,
        encode_us=seconds / asked * 1e6,
    )


def describe(teacher: HeadLogits, student: HeadLogits, path: str) -> dict[str, float | int | str]:
    """Say what the models are like on these tokens."""
    entropy = divergence = 0.0
    for start, stop in chunks(len(teacher), teacher.classes, CHUNK):
        log_p = teacher.rows(start, stop).float().log_softmax(dim=1)
        log_q = student.rows(start, stop).float().log_softmax(dim=1)
        entropy -= (log_p.exp() * log_p).sum().item()
        divergence += (log_p.exp() * (log_p - log_q)).sum().item()
    count = len(teacher)
    facts = {"path": path, "vocabulary": teacher.classes, "tokens": count, "entropy": entropy / count}
    return facts | {"student_kl": divergence / count}


def show(rows: dict[str, Row], facts: dict[str, float | int | str]) -> None:
    """Print the table."""
    title = (
        f"V = {facts['vocabulary']:,}, {facts['tokens']:,} tokens, the teacher's entropy {facts['entropy']:.2f} nats, "
        f"KL(teacher ‖ student) {facts['student_kl']:.2f}"
    )
    table = Table(title=title, title_justify="left")
    heads = ("", "bytes", "mass", "KL", "cosine", "head cosine", "noise", "bias", "± se", "µs")
    for column in heads:
        table.add_column(column, justify="right" if column else "left")
    for name, it in sorted(rows.items(), key=lambda row: row[1].bytes):
        kl = "–" if it.kl is None else f"{it.kl:.4f}"
        cells = [f"{it.bytes:.1f}", f"{it.mass:.3f}", kl, f"{it.cosine:.4f}", f"{it.batch_cosine:.4f}"]
        cells += [f"{it.noise:.4f}", f"{it.bias:.4f}", f"{it.bias_error:.4f}", f"{it.encode_us:.0f}"]
        table.add_row(name, *cells)
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
