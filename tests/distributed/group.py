"""Train every loss in 1, 2 and 4 processes with every engine: `python -m tests.distributed.group FOLDER`.

One process imports everything and forks the processes of each group. What a group came to lies in FOLDER/<group>.pt.
"""

from __future__ import annotations

import gc
import os
import socket
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from torch import Tensor
from torch.distributed.tensor import DTensor

from distillkit.data.encode import encode
from distillkit.data.files import FileDataset
from distillkit.losses.attention import AttentionKL, AttentionScoreMSE
from distillkit.losses.base import Loss
from distillkit.losses.binary import BinaryKL
from distillkit.losses.contrastive import InfoNCE
from distillkit.losses.decoupled import DecoupledKD
from distillkit.losses.divergences import AdaptiveKL, ForwardKL, GeneralizedJSD, ReverseKL, SkewedReverseKL
from distillkit.losses.hidden import HiddenCosine, HiddenMSE
from distillkit.losses.logits import Correlation, LogitMSE, RankingLogistic
from distillkit.losses.objective import Objective
from distillkit.losses.relations import RelationKL, RKDAngle, RKDDistance, SimilarityPreserving
from distillkit.losses.task import BinaryCrossEntropy, CrossEntropy, Regression
from distillkit.models.anatomy import shape_of
from distillkit.models.live import LiveModel
from distillkit.models.teachers import FrozenModel
from distillkit.schema import LoraSettings
from distillkit.tasks.base import Task
from distillkit.tasks.causal_lm import CausalLM
from distillkit.tasks.multi_label import MultiLabelClassification
from distillkit.tasks.regression import Regression as Scores
from distillkit.tasks.sequence_classification import SequenceClassification
from distillkit.training import loop
from distillkit.training.engines import Engine, make_engine
from distillkit.training.loop import fit
from distillkit.training.run import Run
from distillkit.training.sharding import is_sharded, shard_teacher
from tests.samples import write_rows
from tests.tiny import bert, encoded, events, llama, tokenizer, training

STEPS = 3
ROWS = 15  # in batches of 7: the last step has one row, which leaves nothing to the other processes
RANK, PROCESSES = 0, 1  # of this process
TOGETHER = 4  # rows that all processes work on at a time, so that a step has two such parts


@dataclass(frozen=True)
class Case:
    """What is trained: a kind of student, the terms of its loss, and settings."""

    kind: str
    losses: Callable[[], list[Loss]]
    settings: dict[str, Any] = field(default_factory=dict)
    evaluated: bool = False


def logit_losses() -> list[Loss]:
    return [CrossEntropy(), ForwardKL(2.0), ReverseKL(), GeneralizedJSD(), SkewedReverseKL(), AdaptiveKL(), LogitMSE()]


CASES = {
    "logits": Case("classifier", logit_losses),
    "hidden": Case(
        "classifier", lambda: [CrossEntropy(), HiddenMSE(), HiddenCosine(projector="orthogonal")], evaluated=True
    ),
    "attention": Case("classifier", lambda: [AttentionKL(), AttentionScoreMSE()]),
    "minilm": Case("classifier", lambda: [RelationKL(heads=2)]),
    "contrastive": Case("classifier", lambda: [CrossEntropy(), InfoNCE()]),
    "rows": Case("classifier", lambda: [RKDDistance(), RKDAngle(), SimilarityPreserving(), CrossEntropy()]),
    "labels": Case("labels", lambda: [BinaryCrossEntropy(), BinaryKL()]),
    "scores": Case("scores", lambda: [Regression(), LogitMSE()]),
    "vocabulary": Case("untied", lambda: [*logit_losses(), DecoupledKD(), Correlation(), RankingLogistic()]),
    "tied": Case("tied", lambda: [CrossEntropy(), ForwardKL(), HiddenMSE()], evaluated=True),
    "lora": Case("tied", lambda: [ForwardKL()], {"lora": LoraSettings(rank=2), "learning_rate": 0.1}),
    "frozen": Case("classifier", lambda: [ForwardKL()], {"freeze": 1, "layer_decay": 0.5, "head_learning_rate": 0.1}),
}
TASKS: dict[str, Callable[[], Task]] = {
    "classifier": lambda: SequenceClassification(32),
    "labels": lambda: MultiLabelClassification(32),
    "scores": lambda: Scores(32),
    "untied": lambda: CausalLM(32),
    "tied": lambda: CausalLM(32),
}


def model(kind: str, layers: int, hidden: int, seed: int) -> LiveModel:
    """Make a model that has opinions: with weights as large as a trained one's."""
    task = TASKS[kind]()
    outputs = {"classifier": 2, "labels": 3, "scores": 1}.get(kind)
    made = llama(layers, hidden, seed) if outputs is None else bert(layers, hidden, seed, outputs)
    if kind == "tied":
        made.config.tie_word_embeddings = True
        made.tie_weights()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(8.0 if parameter.ndim > 1 else 1.0)
    return LiveModel(made, tokenizer(), task)


def data(kind: str, folder: Path, task: Task) -> Any:
    if kind not in ("labels", "scores"):
        return encoded(folder, task, ROWS)
    write_rows(folder, {"labels": "multi_label", "scores": "regression"}[kind], ROWS)
    names = ["bad", "good", "place"] if kind == "labels" else None
    rows = FileDataset(train=str(folder / "train.jsonl"), labels=names).load()
    return encode(rows, "train", task, tokenizer(), names)


def prepare(folder: Path, case: Case, sharded: bool = False, precision: str = "no", **more: Any) -> Run:
    """Make a run of this process, the first of one or one of several."""
    AcceleratorState._reset_state()
    Accelerator(cpu=True, mixed_precision=precision)
    student, teacher = model(case.kind, 2, 16, seed=1), model(case.kind, 3, 32, seed=0)
    settings = {"batch_size": 7, "micro_batch_size": TOGETHER // PROCESSES, "max_steps": STEPS, "max_grad_norm": None}
    settings |= {"epsilon": 1e-3} | case.settings | more
    rows = data(case.kind, folder / f"data-{RANK}", student.task)
    made = training(folder, student, teacher, rows, **settings)
    made.objective = Objective({type(loss).__name__: {"weight": 0.5, "loss": loss} for loss in case.losses()})
    torch.manual_seed(0)
    made.objective.bind(shape_of(student.model.config), shape_of(teacher.model.config))
    made.teacher = FrozenModel(teacher, made.objective.wanted_of_teacher)
    if not case.evaluated:
        made.evaluate = None
    if not made.objective.wanted_of_student.logits:
        made.accelerator.ddp_handler = DistributedDataParallelKwargs(find_unused_parameters=True)
    made.sharded = sharded
    if sharded and PROCESSES == 2:  # once is enough
        shard_teacher(made.teacher, made.accelerator)
    return made


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.clone()


def outcome(made: Run) -> dict[str, Any]:
    """Train; return the events, the gradients of the first step, and the weights in the end."""
    gradients: dict[str, Tensor] = {}
    engines: list[Engine] = []

    def make(*arguments: Any) -> Engine:
        engines.append(make_engine(*arguments))
        return engines[0]

    def look() -> None:
        for name, parameter in engines[0].trainee.named_parameters():
            if parameter.grad is not None and name not in gradients:
                gradients[name] = whole(parameter.grad)

    made.before_step = look
    loop.make_engine = make
    fit(made)
    assert is_sharded(engines[0].trainee) == made.sharded
    projectors = {name: whole(tensor.detach()) for name, tensor in made.objective.named_parameters()}
    return {
        "events": events(made.folder.parent) if RANK == 0 else [],
        "gradients": gradients,
        "weights": made.student.model.state_dict() | projectors,
    }


def work(folder: Path, begin: Path | None) -> None:
    """Do everything that a group does, and keep what it came to."""
    found = {"chain": outcome(link(folder / "chain", begin))}
    if folder.name == "again":
        torch.save(found, folder / "found.pt")
        return
    for name, case in CASES.items():
        for engine in ("ddp", "fsdp")[:PROCESSES]:
            key = f"{name}-{engine}"
            found[key] = outcome(prepare(folder / key, case, engine == "fsdp"))
    if PROCESSES < 4:
        run = prepare(folder / "bf16", CASES["tied"], PROCESSES > 1, "bf16")
        found["bf16"] = outcome(run)
        assert {tensor.dtype for tensor in run.student.model.parameters()} == {torch.float32}
    if RANK == 0:
        torch.save(found, folder / "found.pt")


def link(folder: Path, begin: Path | None) -> Run:
    """Go on from another group's checkpoint, and leave others. Two processes write them while they train."""
    kept = {"checkpoint_every": 2, "keep_checkpoints": 9, "async_checkpoint": PROCESSES == 2, "keep_best": False}
    made = prepare(folder, CASES["hidden"], PROCESSES > 1, max_steps=8, **kept)
    made.resume_from = begin
    return made


def process(rank: int, processes: int, port: int, folder: Path, begin: Path | None) -> None:
    """Be one process of a group."""
    global RANK, PROCESSES
    RANK, PROCESSES = rank, processes
    if processes > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
        os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    torch.set_num_threads(1)
    work(folder, begin)


def group(processes: int, folder: Path, begin: Path | None = None) -> None:
    """Fork the processes of a group, and wait for them."""
    folder.mkdir()
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(processes):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                process(rank, processes, port, folder, begin)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert codes == [0] * processes, codes


def main(folder: Path) -> None:
    """Let the groups run one after the other, each from a checkpoint that the one before left."""
    gc.freeze()  # what was imported stays shared by all processes
    group(1, folder / "1")
    group(2, folder / "2", folder / "1/chain/checkpoints/step-000002")
    group(4, folder / "4", folder / "2/chain/checkpoints/step-000004")
    group(1, folder / "again", folder / "4/chain/checkpoints/step-000006")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
