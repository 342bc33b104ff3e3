"""Time a teacher store: capture against the teacher's bare forward pass, and training from it against plain training.

python scripts/bench/store_speed.py
python scripts/bench/store_speed.py --device cuda --dtype bfloat16 --hidden 2048 --layers 16 --tokens 8192
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from cases import Measurement, measure, serve, show, write
from transformers import LlamaConfig, LlamaForCausalLM

from distillkit.cache.formats import encode, usual_codec
from distillkit.losses.divergences import ForwardKL
from distillkit.losses.objective import Objective
from distillkit.losses.task import CrossEntropy
from distillkit.models.head import head_signal
from distillkit.signals import Batch, Signal

SIZES = ((256, 4), (512, 6), (1024, 8))  # hidden, layers of the teacher
LENGTH = 256


def main() -> None:
    """Compare, or be the process of one case."""
    options = parse()
    torch.set_num_threads(options.threads)
    if options.case is not None:
        torch.manual_seed(0)
        serve(CASES[options.case](options), options.device)
        return
    results: dict[str, dict[str, Measurement]] = {}
    for hidden, layers in SIZES if options.hidden is None else ((options.hidden, options.layers),):
        title = f"capture: teacher {layers} × {hidden}, V = {options.vocabulary:,}, {options.tokens:,} tokens"
        cases = {name: command(options, name, hidden, layers) for name in ("forward", "capture")}
        results[title] = measure(cases, options.rounds)
        show(title, results[title], "forward")
    title = f"training: student 4 × 256, V = {options.vocabulary:,}, {options.tokens:,} tokens"
    names = ("plain", "stored", "read", "read and stored")
    results[title] = measure({name: command(options, name, 256, 4) for name in names}, options.rounds)
    show(title, results[title], "plain")
    write(results, options.device, options.output)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2_048)
    parser.add_argument("--vocabulary", type=int, default=50_304)
    parser.add_argument("--hidden", type=int, help="one teacher of this width")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, help="write the JSON here")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    return parser.parse_args()


def command(options: argparse.Namespace, case: str, hidden: int, layers: int) -> list[str]:
    """Return the arguments of one case."""
    chosen = {name: getattr(options, name) for name in ("tokens", "vocabulary", "device", "dtype", "threads")}
    chosen |= {"hidden": hidden, "layers": layers, "case": case}
    return [f"--{name}={value}" for name, value in chosen.items()]


def model(options: argparse.Namespace) -> LlamaForCausalLM:
    """Make a model whose distributions are about as flat as those of language models."""
    width = options.hidden
    config = LlamaConfig(
        vocab_size=options.vocabulary,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=options.layers,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 64,
    )
    made = LlamaForCausalLM(config).to(options.device, getattr(torch, options.dtype))
    with torch.no_grad():
        made.lm_head.weight.normal_(0, 3 * width**-0.5)
    return made


def batch_of(options: argparse.Namespace) -> Batch:
    """Make rows of full length; every position is an item."""
    ids = torch.randint(options.vocabulary, (options.tokens // LENGTH, LENGTH), device=options.device)
    counted = torch.ones_like(ids, dtype=torch.bool)
    counted[:, -1] = False
    labels = ids[:, 1:].flatten()
    return Batch({"input_ids": ids}, counted, labels, torch.ones_like(labels, dtype=torch.bool))


def forward(options: argparse.Namespace) -> Callable[[], None]:
    """Return the bare forward pass: all logits, and nothing done with them."""
    teacher, batch = model(options).eval(), batch_of(options)

    def run() -> None:
        with torch.inference_mode():
            teacher(**batch.inputs, use_cache=False)

    return run


def kept(teacher: LlamaForCausalLM, batch: Batch) -> dict[str, list[bytes]]:
    """Ask a teacher and encode what it says."""
    with torch.inference_mode():
        logits = head_signal(teacher, batch).logits
        assert logits is not None
        encoded = encode(usual_codec(whole=False), logits, torch.arange(len(logits)))
    rows = batch.counted.sum(dim=1).tolist()
    return encoded.pack(rows)


def capture(options: argparse.Namespace) -> Callable[[], None]:
    """Return the same with what a store keeps."""
    teacher, batch = model(options).eval(), batch_of(options)

    def run() -> None:
        kept(teacher, batch)

    return run


def learning(options: argparse.Namespace, read: bool, train: bool, stored: bool) -> Callable[[], None]:
    """Return a step of a student: labels alone, or with a store that is read in the step or before."""
    student, batch = model(options), batch_of(options)
    columns = kept(model(options).eval(), batch)
    codec = usual_codec(whole=False)
    terms: dict[str, Any] = {"hard": {"weight": 0.5, "loss": CrossEntropy()}}
    if stored:
        terms["kd"] = {"weight": 0.5, "loss": ForwardKL()}
    objective = Objective(terms)
    counts = objective.counts(batch)
    before = codec.decode(columns, options.vocabulary)

    def run() -> None:
        taught = codec.decode(columns, options.vocabulary) if read else before
        if train:
            student.zero_grad(set_to_none=True)
            objective(head_signal(student, batch), Signal(taught) if stored else None, batch, counts)[0].backward()

    return run


CASES = {
    "forward": forward,
    "capture": capture,
    "plain": lambda options: learning(options, read=False, train=True, stored=False),
    "stored": lambda options: learning(options, read=False, train=True, stored=True),
    "read": lambda options: learning(options, read=True, train=False, stored=True),
    "read and stored": lambda options: learning(options, read=True, train=True, stored=True),
}

if __name__ == "__main__":
    main()
