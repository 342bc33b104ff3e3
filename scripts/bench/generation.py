"""Write answers to prompts of mixed length: our continuous batches against `model.generate` in order of arrival.

python scripts/bench/generation.py                               # a random model, answers of random length
python scripts/bench/generation.py --teacher MODEL --data FILE   # a model folder, and JSON lines with an instruction

Every case is greedy, writes the same answers at the same batch size, and runs in a process of its own; they take turns.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from cases import measure, serve, show, write
from transformers import LlamaConfig, LlamaForCausalLM, StoppingCriteria, StoppingCriteriaList

from distillkit.generation.backends.base import Sampling
from distillkit.generation.decoding.choose import draws
from distillkit.generation.decoding.loop import Writing
from distillkit.generation.decoding.loop import write as write_continuously
from distillkit.generation.decoding.rows import CausalRows
from distillkit.tasks.base import attention_mask, pad
from distillkit.tasks.prompts import write_prompt

CASES = ("generate, in order of arrival", "generate, by length", "distillkit")
PADDING, END = 1, 0


def main() -> None:
    """Measure every case, print a table and JSON."""
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    if arguments.case:
        serve(case(arguments.case, arguments), arguments.device)
        return
    given = [word for key, value in vars(arguments).items() for word in _as_words(key, value)]
    measured = measure({name: [*given, "--case", name] for name in CASES}, arguments.rounds)
    model, prompts, rooms, ends = load(arguments)
    lengths = np.percentile([len(prompt) for prompt in prompts], [0, 50, 100]).astype(int).tolist()
    answers = [len(tokens) for tokens in ours(model, prompts, rooms, ends, arguments)]
    tokens = f"{sum(answers):,} tokens of answers, {min(answers)} … {max(answers)} each"
    title = f"{len(prompts)} prompts of {lengths} tokens (least, median, most), {tokens}, batch {arguments.batch_size}"
    show(title, measured, CASES[0])
    write({title: measured}, arguments.device, arguments.output)


def _as_words(key: str, value: object) -> list[str]:
    skipped = key in ("case", "output", "rounds") or value is None
    return [] if skipped else [f"--{key.replace('_', '-')}", str(value)]


def case(name: str, arguments: argparse.Namespace) -> Callable[[], None]:
    """Return what one case runs."""
    model, prompts, rooms, ends = load(arguments)
    if name == CASES[2]:
        return lambda: ours(model, prompts, rooms, ends, arguments) and None
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index])) if name == CASES[1] else None
    order = list(range(len(prompts))) if order is None else order
    return lambda: theirs(model, [prompts[i] for i in order], [rooms[i] for i in order], ends, arguments)


@torch.no_grad()
def theirs(
    model: LlamaForCausalLM,
    prompts: list[list[int]],
    rooms: list[int],
    ends: list[int],
    arguments: argparse.Namespace,
) -> None:
    """Write by `model.generate`, batch by batch."""
    for start in range(0, len(prompts), arguments.batch_size):
        chosen = prompts[start : start + arguments.batch_size]
        ids, mask = pad([row[::-1] for row in chosen], PADDING).flip(1), attention_mask(chosen).flip(1)
        full = Full(torch.tensor(rooms[start : start + arguments.batch_size]) + ids.shape[1])
        model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=arguments.max_new_tokens,
            do_sample=False,
            pad_token_id=PADDING,
            eos_token_id=ends,
            stopping_criteria=StoppingCriteriaList([full]),
        )


class Full(StoppingCriteria):
    """End each row at a length of its own, as an end-of-text token would."""

    def __init__(self, lengths: torch.Tensor) -> None:
        self.lengths = lengths

    def __call__(self, input_ids: torch.Tensor, scores: object, **kwargs: object) -> torch.Tensor:  # noqa: ARG002
        """Tell which rows have their length."""
        return (self.lengths <= input_ids.shape[1]).to(input_ids.device)


def ours(
    model: LlamaForCausalLM,
    prompts: list[list[int]],
    rooms: list[int],
    ends: list[int],
    arguments: argparse.Namespace,
) -> list[list[int]]:
    """Write as `generate-pseudo` does."""
    answers = [Writing(index, room, draws((0,), 0)) for index, room in enumerate(rooms)]
    rows = CausalRows(model, PADDING)
    write_continuously(rows, prompts, answers, Sampling(), arguments.batch_size, lambda tokens: tokens[-1] in ends)
    return [one.tokens for one in answers]


def load(arguments: argparse.Namespace) -> tuple[LlamaForCausalLM, list[list[int]], list[int], list[int]]:
    """Return a model, prompts, how long their answers may be, and the tokens that end an answer."""
    if arguments.teacher is not None:
        return load_folder(arguments)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=arguments.vocabulary,
        hidden_size=arguments.width,
        intermediate_size=3 * arguments.width,
        num_hidden_layers=arguments.layers,
        num_attention_heads=4,
        bos_token_id=END,
        eos_token_id=END,
        pad_token_id=PADDING,
    )
    model = LlamaForCausalLM(config).eval().to(arguments.device)
    random = np.random.default_rng(0)
    lengths = np.clip(random.lognormal(4.0, 0.7, arguments.prompts), 4, 512).astype(int)
    prompts = [random.integers(2, arguments.vocabulary, length).tolist() for length in lengths]
    rooms = np.clip(random.geometric(1 / arguments.mean_answer, arguments.prompts), 1, arguments.max_new_tokens)
    return model, prompts, rooms.tolist(), [arguments.vocabulary]  # no token ends: a random model would say it or never


def load_folder(arguments: argparse.Namespace) -> tuple[LlamaForCausalLM, list[list[int]], list[int], list[int]]:
    """Load a model folder, and make prompts of instructions."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(arguments.teacher)
    model = AutoModelForCausalLM.from_pretrained(arguments.teacher).eval().to(arguments.device)
    lines = arguments.data.read_text(encoding="utf-8").splitlines()[: arguments.prompts]
    rows = [json.loads(line) for line in lines]
    texts = [write_prompt("alpaca", row["instruction"], row.get("input")) for row in rows]
    ids = tokenizer(texts)["input_ids"]
    prompts = [row[:-1] if row[-1] == tokenizer.eos_token_id else row for row in ids]
    return model, prompts, [arguments.max_new_tokens] * len(prompts), [tokenizer.eos_token_id]


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--case")
    for name, value in (
        ("prompts", 500),
        ("batch-size", 16),
        ("max-new-tokens", 256),
        ("mean-answer", 64),
        ("vocabulary", 32000),
        ("width", 256),
        ("layers", 4),
        ("threads", 2),
        ("rounds", 3),
    ):
        parser.add_argument(f"--{name}", type=int, default=value)
    return parser.parse_args()


if __name__ == "__main__":
    main()
