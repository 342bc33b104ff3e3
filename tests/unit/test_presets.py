"""Every choice of configs/loss composes, binds to unequal models and lowers its loss; bad ones are refused early."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from distillkit import cli, launch
from distillkit.build import build
from distillkit.losses.objective import Objective
from distillkit.models.anatomy import shape_of
from distillkit.models.live import LiveModel
from distillkit.models.teachers import FrozenModel
from distillkit.signals import Batch
from distillkit.tasks.base import Task
from distillkit.tasks.causal_lm import CausalLM
from distillkit.tasks.multi_label import MultiLabelClassification
from distillkit.tasks.regression import Regression
from distillkit.tasks.sequence_classification import SequenceClassification
from tests.tiny import bert, llama, tokenizer

FOLDER = Path(__file__).resolve().parents[2] / "configs/loss"
PRESETS = sorted(path.stem for path in FOLDER.glob("*.yaml") if path.stem != "custom")
NARROW = {"minilmv2": ["loss.terms.relations.loss.heads=4"]}  # tiny models have 16 and 32 dimensions
STEPS = 25


@pytest.fixture
def compose(tmp_path, monkeypatch):
    """Return the objective that command-line words make."""

    def composed(*words: str) -> Objective:
        started = []
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(launch, "start", lambda *what: started.append(what))
        rest = ["teacher=live", "teacher.path=big", "dataset.train=rows.csv", "student.path=small"]
        assert cli.main(["train", *words, *rest]) == 0
        return build(started[0][1].loss, "loss")

    return composed


TASKS: dict[str, Task] = {
    "classes": SequenceClassification(32),
    "tokens": CausalLM(32),
    "labels": MultiLabelClassification(32),
    "scores": Regression(32),
}
CASES = [
    (name, kind)
    for name in PRESETS
    for kind in (("labels",) if "label" in name else ("scores",) if "regression" in name else ("classes", "tokens"))
]


def live(kind: str, layers: int, hidden: int, seed: int) -> LiveModel:
    model = (
        llama(layers, hidden, seed)
        if kind == "tokens"
        else bert(layers, hidden, seed, labels=1 if kind == "scores" else 2)
    )
    return LiveModel(model, tokenizer(), TASKS[kind])


def rows(task: Task) -> Batch:
    random = torch.Generator().manual_seed(0)
    lengths = torch.randint(4, 12, (16,), generator=random).tolist()
    ids = [torch.randint(5, 300, (length,), generator=random).tolist() for length in lengths]
    labels = [{"label": i[0] % 2, "labels": [float(i[0] % 2), float(i[1] % 2)], "score": i[0] / 100} for i in ids]
    made = [{"input_ids": i, "spans": [1, len(i)], "bytes": 1, **label} for i, label in zip(ids, labels, strict=True)]
    return task.collate(made, tokenizer())


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_a_preset_lowers_its_loss(name, kind, compose):
    """From a wider and deeper teacher, whose answers are surer than those of random weights."""
    objective = compose(f"loss={name}", *NARROW.get(name, []))
    student, teacher = live(kind, 2, 16, seed=1), live(kind, 3, 32, seed=0)
    head = teacher.model.get_output_embeddings() if kind == "tokens" else teacher.model.classifier
    torch.nn.init.normal_(head.weight)
    torch.manual_seed(0)
    objective.bind(shape_of(student.model.config), shape_of(teacher.model.config))
    batch = rows(student.task)
    taught = FrozenModel(teacher, objective.wanted_of_teacher)(batch) if objective.needs_teacher else None
    trained = [*student.parameters(), *objective.parameters()]
    optimizer, losses = torch.optim.AdamW(trained, lr=3e-3), []
    for _ in range(STEPS):
        loss, _ = objective(student(batch, objective.wanted_of_student), taught, batch, objective.counts(batch))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.95 * losses[0]


def test_options_are_changed_on_the_command_line(compose):
    patient = "loss.terms.patient"
    objective = compose("loss=pkd", "loss.temperature=3", f"{patient}.weight=7", f"{patient}.loss.layers=last")
    assert objective.weights == [0.5, 0.5, 7]
    assert objective.losses[1].temperature == 3
    assert objective.losses[2].layers == "last"


def test_a_schedule_is_a_node(compose):
    objective = compose(
        "loss=kd",
        "loss.temperature={_target_: distillkit.losses.schedule.Linear, start: 4, end: 2}",
        "loss.terms.hard.weight={_target_: distillkit.losses.schedule.Cosine, start: 0, end: 1}",
    )
    objective.advance(0.5)
    assert objective.weights == pytest.approx([0.5, 0.5])
    assert objective.losses[1].temperature == 3
