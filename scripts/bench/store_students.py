"""Train the same student from a live teacher and from what formats of a teacher store keep; compare held-out loss.

All students start alike and see the same batches; a store is written and read back on the way, with draws by position.

python scripts/bench/store_students.py --teacher FOLDER --data FOLDER --steps 2000
"""

from __future__ import annotations

import argparse
import json
from copy import deepcopy
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from store_formats import label
from transformers import LlamaConfig, LlamaForCausalLM

from distillkit.cache.codec import Codec
from distillkit.cache.formats import encode
from distillkit.cache.sparse import Sampled, TopK, TopKSampled
from distillkit.data.encode import Encoded
from distillkit.data.encode import encode as encode_rows
from distillkit.data.files import FileDataset
from distillkit.losses.base import LogitLoss
from distillkit.losses.divergences import ForwardKL
from distillkit.losses.objective import Objective
from distillkit.losses.task import CrossEntropy
from distillkit.models.head import head_signal
from distillkit.models.load import load_live
from distillkit.signals import Batch, Signal, chunks
from distillkit.tasks.causal_lm import CausalLM

LENGTH = 128
CODECS: tuple[Codec, ...] = (TopK(20, 1.0), TopK(42, 1.0), Sampled(32), TopKSampled())


def main() -> None:
    """Train side by side, then evaluate."""
    options = parse()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    task = CausalLM(max_length=LENGTH)
    teacher = load_live(options.teacher, task, "--teacher").eval()
    rows = FileDataset(path=options.data).load()
    train, test = (encode_rows(rows, split, task, teacher.tokenizer, None) for split in ("train", "test"))
    first = student(teacher.model.config.vocab_size)
    ways: dict[str, tuple[Codec | None, LogitLoss]] = {"labels": (None, CrossEntropy()), "live": (None, ForwardKL())}
    ways |= {label(codec): (codec, ForwardKL()) for codec in CODECS}
    students = {name: deepcopy(first) for name in ways}
    optimizers = {name: torch.optim.AdamW(one.parameters(), lr=options.learning_rate) for name, one in students.items()}
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0)).repeat(
        1 + options.steps * options.batch // len(train)
    )
    for step in range(options.steps):
        batch = train.batch(order[step * options.batch : (step + 1) * options.batch].tolist())
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=options.bf16):
            said = head_signal(teacher.model, batch)
        for name, (codec, loss) in ways.items():
            taught = said if codec is None else stored(codec, said, step)
            rate = options.learning_rate * min(1.0, 2 * (1 - step / options.steps), (step + 1) / 20)
            optimizers[name].param_groups[0]["lr"] = rate
            with torch.autocast("cpu", torch.bfloat16, enabled=options.bf16):
                learn(students[name], optimizers[name], loss, batch, taught)
    losses = {name: held_out(one, test, options.rows) for name, one in students.items()}
    losses["the teacher"] = held_out(teacher.model, test, options.rows)
    show(losses)
    text = json.dumps({"steps": options.steps, "held_out_loss": losses}, indent=1)
    if options.output is None:
        print(text)
    else:
        options.output.write_text(text + "\n", encoding="utf-8")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True, help="folder of a causal LM")
    parser.add_argument("--data", required=True, help="folder of train, validation and test files")
    parser.add_argument("--steps", type=int, default=2_000)
    parser.add_argument("--batch", type=int, default=8, help="rows of 128 tokens")
    parser.add_argument("--rows", type=int, default=200, help="of the test split")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--bf16", action="store_true", help="compute in bfloat16 where autocast does")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, help="write the JSON here")
    return parser.parse_args()


def student(vocabulary: int) -> LlamaForCausalLM:
    """Make a small student with random weights."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config)


def stored(codec: Codec, said: Signal, step: int) -> Signal:
    """Return what a store would answer."""
    logits = said.logits
    assert logits is not None
    encoded = encode(codec, logits, torch.arange(len(logits)) + (step << 20))
    return Signal(codec.decode(encoded.pack([len(logits)]), logits.classes))


def learn(
    one: LlamaForCausalLM, optimizer: torch.optim.Optimizer, loss: LogitLoss, batch: Batch, taught: Signal
) -> None:
    """Take one step."""
    objective = Objective({"only": {"weight": 1.0, "loss": loss}})
    optimizer.zero_grad(set_to_none=True)
    objective(head_signal(one, batch), taught, batch, objective.counts(batch))[0].backward()
    torch.nn.utils.clip_grad_norm_(one.parameters(), 1.0)
    optimizer.step()


@torch.no_grad()
def held_out(one: LlamaForCausalLM, data: Encoded, rows: int) -> float:
    """Return the mean cross-entropy in nats."""
    total = items = 0.0
    for start in range(0, min(rows, len(data)), 8):
        batch = data.batch(list(range(start, min(start + 8, rows, len(data)))))
        logits = head_signal(one, batch).logits
        assert logits is not None
        for begin, end in chunks(len(logits), logits.classes):
            total += (
                CrossEntropy().per_item(logits.rows(begin, end).float(), None, batch.labels[begin:end]).sum().item()
            )
        items += len(logits)
    return total / items


def show(losses: dict[str, float]) -> None:
    """Print the table."""
    table = Table("", "held-out loss", "to the live teacher's student", title="nats a token", title_justify="left")
    for name, loss in losses.items():
        table.add_row(name, f"{loss:.4f}", f"{100 * (loss / losses['live'] - 1):+.2f} %")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
