"""Do independent implementations come to the same values, where they are right?

    python scripts/bench/agreement.py [--json FILE]

Compares in float64 with torch's kl_div, and with TRL and TextBrewer where they are installed (neither is a dependency;
`pip install --no-deps --target FOLDER trl textbrewer` and PYTHONPATH=FOLDER is enough). Exits with 1 where a pair that
should agree does not. Where a peer defines something else, the table says what.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import sys
import types
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional

from distillkit.features import ModelShape
from distillkit.losses.attention import AttentionKL, AttentionScoreMSE
from distillkit.losses.base import FeatureLoss
from distillkit.losses.divergences import ForwardKL, GeneralizedJSD, ReverseKL
from distillkit.losses.hidden import HiddenCosine, HiddenMSE
from distillkit.losses.task import CrossEntropy
from distillkit.signals import Batch, Signal

ROWS, LENGTH, WIDTH, HEADS, CLASSES = 4, 9, 12, 3, 17
SHAPE = ModelShape(1, WIDTH, HEADS, HEADS, WIDTH // HEADS)
PADDING = -10_000.0  # what a TextBrewer model adds to the scores of padding


@dataclass(frozen=True)
class Compared:
    """One pair of values, and what was to be expected of it."""

    peer: str
    ours: str
    case: str
    theirs_value: float
    ours_value: float
    note: str = ""  # where the definitions differ on purpose

    @property
    def agrees(self) -> bool:
        """Whether the values are the same to 1e-9."""
        return abs(self.theirs_value - self.ours_value) <= 1e-9 * max(1.0, abs(self.ours_value))


def main() -> None:
    """Compare with everything that is installed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the values here")
    options = parser.parse_args()
    found = [*with_torch(), *with_trl(), *with_textbrewer()]
    table = Table("peer", "distillkit", "case", "theirs", "ours", "")
    for pair in found:
        verdict = pair.note or ("agrees" if pair.agrees else "DIFFERS")
        table.add_row(pair.peer, pair.ours, pair.case, f"{pair.theirs_value:.9f}", f"{pair.ours_value:.9f}", verdict)
    Console(width=160).print(table)
    if options.json:
        options.json.write_text(json.dumps([asdict(pair) | {"agrees": pair.agrees} for pair in found], indent=1) + "\n")
    sys.exit(any(not pair.agrees and not pair.note for pair in found))


def logits() -> tuple[Tensor, Tensor, Tensor]:
    """Return student's and teacher's logits `[rows, length, classes]`, and labels of which some are missing."""
    random = torch.Generator().manual_seed(0)
    student, teacher = (3 * torch.randn(ROWS, LENGTH, CLASSES, generator=random, dtype=torch.float64) for _ in range(2))
    labels = torch.randint(CLASSES, (ROWS, LENGTH), generator=random)
    labels[:, :2] = -100
    return student, teacher, labels


def mean(loss: Any, student: Tensor, teacher: Tensor, labels: Tensor) -> float:
    """Return our loss over the labelled items."""
    values = loss.per_item(student.flatten(0, 1), teacher.flatten(0, 1), labels.flatten())
    return float(values[labels.flatten() != -100].mean())


def with_torch() -> Iterator[Compared]:
    """Compare with torch.nn.functional."""
    student, teacher, labels = logits()
    kept = labels != -100
    for temperature in (1.0, 4.0):
        log_q, log_p = ((x / temperature).log_softmax(-1)[kept] for x in (student, teacher))
        for ours, pair in ((ForwardKL(temperature), (log_q, log_p)), (ReverseKL(temperature), (log_p, log_q))):
            theirs = temperature**2 * functional.kl_div(*pair, reduction="batchmean", log_target=True)
            value = mean(ours, student, teacher, labels)
            yield Compared("torch kl_div · T²", type(ours).__name__, f"T = {temperature:g}", float(theirs), value)
    for smoothing in (0.0, 0.1):
        theirs = functional.cross_entropy(student.flatten(0, 1), labels.flatten(), label_smoothing=smoothing)
        value = mean(CrossEntropy(smoothing), student, teacher, labels)
        yield Compared("torch cross_entropy", "CrossEntropy", f"smoothing {smoothing:g}", float(theirs), value)


def with_trl() -> Iterator[Compared]:
    """Compare with TRL's generalised JSD: without T², and without the divisor that keeps small β from vanishing."""
    if importlib.util.find_spec("trl") is None:
        return
    from trl.experimental.gkd import GKDTrainer

    student, teacher, labels = logits()
    for beta in (0.0, 0.1, 0.5, 0.9, 1.0):
        for temperature in (1.0, 2.0):
            theirs = GKDTrainer.generalized_jsd_loss(student, teacher, labels, beta, temperature)
            scale = temperature**2 / (beta * (1 - beta) or 1.0)
            value = mean(GeneralizedJSD(beta, temperature), student, teacher, labels)
            case = f"β = {beta:g}, T = {temperature:g}"
            yield Compared("TRL JSD · T²/(β(1−β))", "GeneralizedJSD", case, float(theirs) * scale, value)


def with_textbrewer() -> Iterator[Compared]:
    """Compare with TextBrewer's losses on what happens inside the models."""
    peer = textbrewer_losses()
    if peer is None:
        return
    random = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    for lengths in ((LENGTH,) * ROWS, (6,) * ROWS, (3, LENGTH, 1, 6)):
        mask = torch.tensor([[1] * n + [0] * (LENGTH - n) for n in lengths])
        batch = Batch({"attention_mask": mask}, torch.ones(ROWS, dtype=torch.bool), mask, mask.bool())
        ours, theirs = draw(ROWS, LENGTH, WIDTH), draw(ROWS, LENGTH, WIDTH)
        heads = [
            {f"layers.0.{part}": draw(ROWS, HEADS, LENGTH, WIDTH // HEADS) for part in ("query", "key")} for _ in "st"
        ]
        raw = [_scores(model) for model in heads]
        hidden = [score + (1 - mask[:, None, None].double()) * PADDING for score in raw]
        entropy = peer.att_ce_loss(hidden[1], hidden[1], mask)
        unequal = "weighs pairs of tokens, ours queries" if len(set(lengths)) > 1 else ""
        pairs: list[tuple[str, FeatureLoss, list[dict[str, Tensor]], Any, str]] = [
            ("hid_mse_loss", HiddenMSE(), _states(ours, theirs), peer.hid_mse_loss(ours, theirs, mask), ""),
            ("cos_loss", HiddenCosine(), _states(ours, theirs), peer.cos_loss(ours, theirs, mask), ""),
            (
                "pkd_loss",
                HiddenMSE(normalise=True, pooling="first"),
                _states(ours, theirs),
                peer.pkd_loss(ours, theirs),
                "",
            ),
            ("att_mse_loss", AttentionScoreMSE(), heads, peer.att_mse_loss(*raw, mask), unequal),
            ("att_ce_loss − entropy", AttentionKL(), heads, peer.att_ce_loss(*hidden, mask) - entropy, ""),
        ]
        for name, loss, features, value, note in pairs:
            case = f"lengths {', '.join(map(str, lengths))}"
            yield Compared(
                f"TextBrewer {name}", type(loss).__name__, case, float(value), _inside(loss, features, batch), note
            )


def textbrewer_losses() -> types.ModuleType | None:
    """Load TextBrewer's losses alone: the rest of it needs versions of other packages that are long gone."""
    spec = importlib.util.find_spec("textbrewer")
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(spec.submodule_search_locations[0])
    package = types.ModuleType("textbrewer")
    package.__path__ = [str(folder)]
    sys.modules["textbrewer"] = package
    return importlib.import_module("textbrewer.losses")


def _states(student: Tensor, teacher: Tensor) -> list[dict[str, Tensor]]:
    return [{"layers.0.hidden": student}, {"layers.0.hidden": teacher}]


def _scores(model: dict[str, Tensor]) -> Tensor:
    query, key = model["layers.0.query"], model["layers.0.key"]
    return query @ key.mT / query.shape[-1] ** 0.5


def _inside(loss: FeatureLoss, features: list[dict[str, Tensor]], batch: Batch) -> float:
    loss.bind(SHAPE, SHAPE)
    student, teacher = (Signal(features=shown) for shown in features)
    return float(loss(student, teacher, batch) / loss.mask(batch).sum())


if __name__ == "__main__":
    main()
