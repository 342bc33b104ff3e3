"""A student sharded over two processes (FSDP 2 on gloo) gets the gradient of one that is whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from distillkit.losses.hidden import HiddenMSE
from distillkit.losses.objective import Objective
from distillkit.models.anatomy import layer_stack, shape_of
from distillkit.models.live import LiveModel
from distillkit.models.teachers import FrozenModel
from distillkit.tasks.base import Task
from distillkit.tasks.causal_lm import CausalLM
from distillkit.tasks.sequence_classification import SequenceClassification
from distillkit.training.engines import Trainee
from tests.tiny import bert, distillation, encoded, llama, tokenizer


def model(kind: str, layers: int, hidden: int, seed: int) -> LiveModel:
    task: Task = SequenceClassification(32) if kind == "bert" else CausalLM(32)
    made = bert(layers, hidden, seed) if kind == "bert" else llama(layers, hidden, seed)
    if kind == "tied":
        made.config.tie_word_embeddings = True
        made.tie_weights()
    return LiveModel(made, tokenizer(), task)


def trainee(kind: str) -> tuple[Trainee, FrozenModel]:
    """A student half as wide as its teacher, which learns logits and hidden states."""
    student, teacher = model(kind, 2, 16, seed=1), model(kind, 3, 32, seed=0)
    terms = {name: {"weight": 0.5, "loss": loss} for name, loss in zip("hk", distillation().losses, strict=True)}
    objective = Objective({**terms, "near": {"weight": 1.0, "loss": HiddenMSE(layers="uniform")}})
    torch.manual_seed(0)
    objective.bind(shape_of(student.model.config), shape_of(teacher.model.config))
    return Trainee(student, objective), FrozenModel(teacher, objective.wanted_of_teacher)


def compare(rank: int, meeting: str, folder: str) -> None:
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    torch.set_num_threads(1)
    mesh = init_device_mesh("cpu", (2,))
    for kind in ("bert", "untied", "tied"):
        whole, teacher = trainee(kind)
        sharded, _ = trainee(kind)
        data = encoded(Path(folder) / str(rank), whole.student.task, count=8)
        every, mine = data.batch(range(len(data))), data.batch(range(rank, len(data), 2))
        counts = whole.objective.counts(every)
        loss, sums = whole(every, teacher(every), counts)
        loss.backward()
        for layer in sharded.student.model.get_submodule(layer_stack(sharded.student.model, "")):
            fully_shard(layer, mesh=mesh)
        fully_shard(sharded, mesh=mesh)
        share, part = sharded(mine, teacher(mine), counts)
        (2 * share).backward()
        dist.all_reduce(part)
        torch.testing.assert_close(part, sums, rtol=1e-5, atol=1e-5)
        for (name, ours), theirs in zip(sharded.named_parameters(), whole.parameters(), strict=True):
            difference = (ours.grad.full_tensor() - theirs.grad).abs().max()
            assert difference <= 1e-6 + 1e-4 * theirs.grad.abs().max(), f"{name}: {difference}"
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_gloo_available(), reason="needs gloo")
def test_gradients_are_those_of_one_process(tmp_path):
    mp.spawn(compare, args=(f"file://{tmp_path}/meeting", str(tmp_path)), nprocs=2)
