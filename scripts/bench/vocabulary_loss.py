"""Measure the vocabulary loss: cross-entropy with labels plus a divergence from a teacher, with gradients.

The full computation holds the logits `[tokens, vocabulary]` of both models and leaves the rest to autograd; ours goes
chunk by chunk. Prints tables and JSON.

python scripts/bench/vocabulary_loss.py                                        # the three comparisons of the README
python scripts/bench/vocabulary_loss.py --loss jsd --temperature 2
python scripts/bench/vocabulary_loss.py --device cuda --dtype bfloat16 --tokens 8192 --hidden 2048
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from importlib.util import find_spec
from math import log
from pathlib import Path

import torch
from cases import Measurement, measure, serve, show, write
from torch import Tensor
from torch.nn import functional

from distillkit.losses.divergences import ForwardKL, GeneralizedJSD
from distillkit.losses.task import CrossEntropy
from distillkit.losses.vocabulary import WeightedTerm, vocabulary_pass
from distillkit.signals import HeadLogits

SIZES = ((151_936, 1_024), (32_000, 2_048))  # vocabulary, tokens
LONGER = 8_192  # tokens, against the first size's


def main() -> None:
    """Compare the sizes, or be the process of one case."""
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    if arguments.case is not None:
        torch.manual_seed(0)
        serve(CASES[arguments.case](*inputs(arguments), arguments), arguments.device)
        return
    sizes = SIZES if arguments.tokens is None else ((arguments.vocabulary, arguments.tokens),)
    names = ["full", "ours"]
    if arguments.loss == "jsd" and find_spec("liger_kernel") is not None:
        names.append("liger")
    results: dict[str, dict[str, Measurement]] = {}
    for vocabulary, tokens in sizes:
        title = f"V = {vocabulary:,}, {tokens:,} tokens"
        cases = {name: command(arguments, name, vocabulary, tokens) for name in names}
        results[title] = measure(cases, arguments.rounds)
        show(title, results[title], "full")
    if arguments.tokens is None:
        vocabulary, tokens = SIZES[0]
        cases = {f"{n:,} tokens": command(arguments, "ours", vocabulary, n) for n in (tokens, LONGER)}
        results["ours"] = measure(cases, 1)
        show(f"ours, V = {vocabulary:,}", results["ours"], f"{tokens:,} tokens")
    write(results, arguments.device, arguments.output)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, help="one comparison, of this many tokens")
    parser.add_argument("--vocabulary", type=int, default=SIZES[0][0])
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--loss", choices=("kl", "jsd"), default="kl")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, help="write the JSON here")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    return parser.parse_args()


def command(arguments: argparse.Namespace, case: str, vocabulary: int, tokens: int) -> list[str]:
    """Return the arguments of one case."""
    same = ("hidden", "loss", "temperature", "device", "dtype", "threads")
    chosen = {name: getattr(arguments, name) for name in same}
    chosen |= {"vocabulary": vocabulary, "tokens": tokens, "case": case}
    return [f"--{name}={value}" for name, value in chosen.items()]


def inputs(arguments: argparse.Namespace) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Make hidden states and head of student and teacher, and labels."""
    kind = {"device": arguments.device, "dtype": getattr(torch, arguments.dtype)}
    heads = [
        torch.randn(rows, arguments.hidden, **kind).mul_(size)
        for _ in range(2)
        for rows, size in ((arguments.tokens, 1.0), (arguments.vocabulary, 2 * arguments.hidden**-0.5))
    ]
    labels = torch.randint(arguments.vocabulary, (arguments.tokens,), device=arguments.device)
    return heads[0].requires_grad_(), heads[1].requires_grad_(), heads[2], heads[3], labels


def full(
    hidden: Tensor, weight: Tensor, taught: Tensor, head: Tensor, labels: Tensor, arguments: argparse.Namespace
) -> Callable[[], None]:
    """Return the computation as the textbook has it."""
    temperature = arguments.temperature

    def run() -> None:
        hidden.grad = weight.grad = None
        logits = (hidden @ weight.T).float()
        with torch.no_grad():
            log_p = ((taught @ head.T).float() / temperature).log_softmax(dim=-1)
        log_q = (logits / temperature).log_softmax(dim=-1)
        if arguments.loss == "kl":
            soft = functional.kl_div(log_q, log_p, log_target=True, reduction="batchmean")
        else:  # 4 times Jensen-Shannon
            log_m = torch.logaddexp(log_p, log_q) - log(2)
            soft = 2 * functional.kl_div(log_m, log_p, log_target=True, reduction="batchmean")
            soft = soft + 2 * functional.kl_div(log_m, log_q, log_target=True, reduction="batchmean")
        (0.5 * functional.cross_entropy(logits, labels) + 0.5 * temperature**2 * soft).backward()

    return run


def ours(
    hidden: Tensor, weight: Tensor, taught: Tensor, head: Tensor, labels: Tensor, arguments: argparse.Namespace
) -> Callable[[], None]:
    """Return the same by the vocabulary pass."""
    soft = {"kl": ForwardKL, "jsd": GeneralizedJSD}[arguments.loss](temperature=arguments.temperature)
    counted, scale = torch.ones_like(labels, dtype=torch.bool), torch.tensor(0.5 / len(labels), device=labels.device)
    terms = [WeightedTerm(CrossEntropy(), counted, scale), WeightedTerm(soft, counted, scale)]

    def run() -> None:
        hidden.grad = weight.grad = None
        vocabulary_pass(HeadLogits(hidden, weight), HeadLogits(taught, head), labels, terms)[0].backward()

    return run


def liger(
    hidden: Tensor, weight: Tensor, taught: Tensor, head: Tensor, labels: Tensor, arguments: argparse.Namespace
) -> Callable[[], None]:
    """Return Liger's fused Jensen-Shannon loss, which has no factor 4 and no T²."""
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    loss = LigerFusedLinearJSDLoss(temperature=arguments.temperature, compiled=arguments.device == "cuda")

    def run() -> None:
        hidden.grad = weight.grad = None
        loss(hidden, weight, taught, head, labels, None, None).backward()

    return run


CASES = {"full": full, "ours": ours, "liger": liger}

if __name__ == "__main__":
    main()
