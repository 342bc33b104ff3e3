"""Measure a whole distillation step (forward and backward, no optimiser) of two small Llama-like models.

floor   the bodies of both models with a sum as loss, and the four products with the heads that mathematics requires,
        alone, into memory that is there already: no exact step can take less
plain   cross-entropy and forward KL on the logits of both models, all by autograd
ours    the same through distillkit
jsd     generalised JSD (beta ½) through distillkit, and
trl     by TRL's GKD loss, if TRL can be imported

Prints a table and JSON.

python scripts/bench/kd_step.py
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from cases import measure, serve, show, write
from torch import Tensor
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from distillkit.losses.divergences import ForwardKL, GeneralizedJSD
from distillkit.losses.objective import Objective
from distillkit.losses.task import CrossEntropy
from distillkit.models.head import head_signal
from distillkit.signals import Batch


def main() -> None:
    """Take turns, or be the process of one case."""
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    if arguments.case is not None:
        torch.manual_seed(0)
        serve(CASES[arguments.case](*models(arguments), rows(arguments)), "cpu")
        return
    names = [name for name in CASES if name != "trl" or gkd_loss() is not None]
    same = [f"--{name}={getattr(arguments, name)}" for name in ("vocabulary", "batch", "length", "threads")]
    measured = measure({name: [*same, f"--case={name}"] for name in names}, arguments.rounds)
    title = f"a step: V = {arguments.vocabulary:,}, {arguments.batch} × {arguments.length} tokens"
    show(title, measured, "floor")
    write({title: measured}, "cpu", arguments.output)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, default=50_304)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path, help="write the JSON here")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    return parser.parse_args()


def models(arguments: argparse.Namespace) -> tuple[LlamaForCausalLM, LlamaForCausalLM]:
    """Make student and teacher."""
    made = []
    for layers, width in ((4, 256), (6, 384)):
        config = LlamaConfig(
            vocab_size=arguments.vocabulary,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=width // 64,
            num_key_value_heads=width // 64,
            intermediate_size=width * 8 // 3,
            max_position_embeddings=arguments.length,
            tie_word_embeddings=False,
        )
        made.append(LlamaForCausalLM(config))
    return made[0].train(), made[1].eval().requires_grad_(False)


def rows(arguments: argparse.Namespace) -> Batch:
    """Make rows of which every position counts."""
    ids = torch.randint(arguments.vocabulary, (arguments.batch, arguments.length))
    counted = torch.ones_like(ids, dtype=torch.bool)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return Batch(inputs, counted, ids.roll(-1, dims=1).flatten(), counted.flatten())


def floor(student: LlamaForCausalLM, teacher: LlamaForCausalLM, batch: Batch) -> Callable[[], None]:
    """Return what no step can do without."""
    heads = [model.lm_head.weight.detach() for model in (student, teacher)]
    logits = [torch.zeros(batch.labels.numel(), len(head)) for head in heads]
    grad_hidden, grad_weight = torch.zeros(len(batch.labels), heads[0].shape[1]), torch.zeros_like(heads[0])

    def run() -> None:
        student.zero_grad(set_to_none=True)
        with torch.no_grad():
            taught = teacher.model(**batch.inputs, use_cache=False).last_hidden_state.flatten(0, 1)
        hidden = student.model(**batch.inputs, use_cache=False).last_hidden_state.flatten(0, 1)
        hidden.sum().backward()
        with torch.no_grad():
            torch.mm(taught, heads[1].T, out=logits[1])
            torch.mm(hidden, heads[0].T, out=logits[0])
            torch.mm(logits[0], heads[0], out=grad_hidden)
            torch.mm(logits[0].T, hidden, out=grad_weight)

    return run


def plain(student: LlamaForCausalLM, teacher: LlamaForCausalLM, batch: Batch) -> Callable[[], None]:
    """Return the textbook's step."""

    def loss(logits: Tensor, taught: Tensor) -> Tensor:
        logits, taught = logits.flatten(0, 1), taught.flatten(0, 1)
        log_q, log_p = logits.log_softmax(dim=-1), taught.log_softmax(dim=-1)
        soft = functional.kl_div(log_q, log_p, log_target=True, reduction="batchmean")
        return 0.5 * functional.cross_entropy(logits, batch.labels) + 0.5 * soft

    return on_logits(student, teacher, batch, loss)


def trl(student: LlamaForCausalLM, teacher: LlamaForCausalLM, batch: Batch) -> Callable[[], None]:
    """Return a step with TRL's loss."""
    loss = gkd_loss()
    assert loss is not None
    return on_logits(student, teacher, batch, loss)


def on_logits(
    student: LlamaForCausalLM, teacher: LlamaForCausalLM, batch: Batch, loss: Callable[[Tensor, Tensor], Tensor]
) -> Callable[[], None]:
    """Return a step of a loss on the logits `[batch, length, vocabulary]` of both models."""

    def run() -> None:
        student.zero_grad(set_to_none=True)
        with torch.no_grad():
            taught = teacher(**batch.inputs, use_cache=False).logits
        loss(student(**batch.inputs, use_cache=False).logits, taught).backward()

    return run


def gkd_loss() -> Any:
    """Import TRL's loss, wherever this version has it; None without TRL."""
    with suppress(ImportError):
        from trl.experimental.gkd import GKDTrainer

        return GKDTrainer.generalized_jsd_loss
    with suppress(ImportError):
        from trl import GKDTrainer

        return GKDTrainer.generalized_jsd_loss
    return None


def ours(student: LlamaForCausalLM, teacher: LlamaForCausalLM, batch: Batch) -> Callable[[], None]:
    """Return distillkit's step."""
    terms = {"hard": {"weight": 0.5, "loss": CrossEntropy()}, "kd": {"weight": 0.5, "loss": ForwardKL()}}
    return with_objective(student, teacher, batch, Objective(terms))


def jsd(student: LlamaForCausalLM, teacher: LlamaForCausalLM, batch: Batch) -> Callable[[], None]:
    """Return distillkit's step with the generalised JSD."""
    return with_objective(student, teacher, batch, Objective({"kd": {"weight": 1.0, "loss": GeneralizedJSD()}}))


def with_objective(
    student: LlamaForCausalLM, teacher: LlamaForCausalLM, batch: Batch, objective: Objective
) -> Callable[[], None]:
    """Return a step of an objective."""
    counts = objective.counts(batch)

    def run() -> None:
        student.zero_grad(set_to_none=True)
        with torch.no_grad():
            taught = head_signal(teacher, batch)
        objective(head_signal(student, batch), taught, batch, counts)[0].backward()

    return run


CASES = {"floor": floor, "plain": plain, "ours": ours, "jsd": jsd, "trl": trl}

if __name__ == "__main__":
    main()
