"""Engines: how the processes hold what is trained, either whole in each (DDP) or a share in each (FSDP 2)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from distillkit.features import at_layers
from distillkit.losses.objective import Objective
from distillkit.models.live import LiveModel
from distillkit.signals import Batch, Signal
from distillkit.training.layers import put_back, set_up
from distillkit.training.optimizer import make_optimizer
from distillkit.training.run import Run
from distillkit.training.sharding import fill, hollow, move_out, shard


class Trainee(nn.Module):
    """Student and objective as one module, so that wrapping it synchronises every trained weight."""

    def __init__(self, student: LiveModel, objective: Objective) -> None:
        super().__init__()
        self.student = student
        self.objective = objective

    def forward(self, batch: Batch, taught: Signal | None, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Return the micro-batch's share of the loss and the sum of each term `[terms]`."""
        said = self.student(batch, self.objective.wanted_of_student)
        return self.objective(said, taught, batch, counts)


class Engine:
    """Every process has the whole student; where there are several, Accelerate averages the gradients (DDP).

    Args:
        run: Its settings and parts.
        scales: What the learning rate of parameters is multiplied by, where that is not 1.

    Attributes:
        trainee: What is trained.
        module: The same as it is called, so that gradients meet.
        optimizer: Of it.
    """

    def __init__(self, run: Run, scales: Mapping[nn.Parameter, float]) -> None:
        self.run = run
        self.trainee = Trainee(run.student, run.objective).to(run.accelerator.device)
        set_up(run.student, run.settings, run.objective.wanted_of_student.features)
        optimizer = make_optimizer(self.trainee, run.settings, scales)
        self.module: nn.Module
        self.optimizer: Any
        self.module, self.optimizer = run.accelerator.prepare(self.trainee, optimizer)

    @contextmanager
    def whole_student(self) -> Iterator[LiveModel]:
        """Let the run's student have its weights inside, so that it can be asked without the other processes."""
        yield self.run.student

    def finish(self) -> None:
        """Leave the trained weights in the run's student, which runs as before."""
        put_back(self.run.student, self.run.settings)


class ShardedEngine(Engine):
    """Every process has a share of the student, of the projectors and of the optimiser's state.

    What is trained is a copy, which takes the weights of the run's student. That one is hollow until it is needed as
    a whole: to be evaluated, and in the end. Gradients of what is captured inside a layer do not come through its
    output, where its weights would be gathered again; so these are kept from the forward pass on if a loss looks there.
    """

    def __init__(self, run: Run, scales: Mapping[nn.Parameter, float]) -> None:
        self.run = run
        run.student.to(run.accelerator.device)
        self.trainee = Trainee(move_out(run.student), run.objective).to(run.accelerator.device)
        before = list(self.trainee.parameters())
        features = run.objective.wanted_of_student.features
        inside = any(not at_layers(name) for name in features)
        set_up(self.trainee.student, run.settings, features)
        shard(self.trainee, self.trainee.student, run.accelerator, run.reshard and not inside)
        moved = dict(zip(before, self.trainee.parameters(), strict=True))
        scales = {moved[parameter]: scale for parameter, scale in scales.items()}
        self.module = self.trainee
        self.optimizer = run.accelerator.prepare(make_optimizer(self.trainee, run.settings, scales))

    @contextmanager
    def whole_student(self) -> Iterator[LiveModel]:
        """Gather the weights, and free them again."""
        fill(self.run.student, self.trainee.student, True, self.run.accelerator.device)
        try:
            yield self.run.student
        finally:
            hollow(self.run.student)

    def finish(self) -> None:
        """Gather the weights: in every process if all of them evaluate the student, else in the main one's memory."""
        accelerator, everywhere = self.run.accelerator, self.run.evaluate is not None
        device = accelerator.device if everywhere else torch.device("cpu")
        fill(self.run.student, self.trainee.student, everywhere or accelerator.is_main_process, device)


def make_engine(run: Run, scales: Mapping[nn.Parameter, float]) -> Engine:
    """Return the engine that a run asks for; one process alone has everything anyway."""
    sharded = run.sharded and run.accelerator.num_processes > 1
    return (ShardedEngine if sharded else Engine)(run, scales)
