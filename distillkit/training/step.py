"""One optimiser step: micro-batches, exact averages over all of them, and what is done when it is not finite."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from math import ceil, inf

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from distillkit.data.batches import micro_batches
from distillkit.data.plans import Plan
from distillkit.signals import Batch
from distillkit.training.checkpoint import random_state, restore_random_state
from distillkit.training.engines import Engine
from distillkit.training.interruption import Interruption
from distillkit.training.memory import explained, largest_fitting
from distillkit.training.nonfinite import NonFinite
from distillkit.training.optimizer import learning_rate, set_learning_rate
from distillkit.training.run import Run
from distillkit.training.tuning import Tuning


@dataclass(frozen=True)
class Outcome:
    """What a step came to.

    Attributes:
        norm: Of the gradient, before clipping.
        sums: Of each term, of this process `[terms]`.
        counts: Items of each, of all processes `[terms]`.
        finite: Whether loss and gradient are, in every process; else no weight was changed.
        ending: Whether a process was asked to end.
    """

    norm: Tensor
    sums: Tensor
    counts: Tensor
    finite: bool
    ending: bool


class Stepper:
    """Do optimiser steps.

    Args:
        run: Its settings and parts.
        plan: Which rows make which step.
        engine: Holds what is trained.
        tuning: Knows which weights are trained.
        interruption: Knows whether this process was asked to end.
    """

    def __init__(
        self,
        run: Run,
        plan: Plan,
        engine: Engine,
        tuning: Tuning,
        interruption: Interruption,
    ) -> None:
        self.run, self.plan, self.tuning, self.interruption = run, plan, tuning, interruption
        self.trainee, self.module, self.optimizer = engine.trainee, engine.module, engine.optimizer
        self.nonfinite = NonFinite(run.settings.max_nonfinite_steps)
        share = ceil(run.settings.batch_size / run.accelerator.num_processes)
        self.micro_batch_size = min(run.settings.micro_batch_size or share, share)

    def fit_memory(self, step: int) -> None:
        """Make micro-batches small enough for the memory there is, by the longest rows that are known at a step."""
        data, _ = self.plan.rows(step)
        longest = np.argsort(data.lengths, kind="stable")[::-1]
        state = random_state()

        def attempt(size: int) -> None:
            batch = data.batch(longest[:size], (self.run.settings.seed, step))
            trained = [parameter for parameter in self.trainee.parameters() if parameter.requires_grad]
            moments = [torch.empty_like(parameter) for parameter in trained for _ in range(2)]  # of AdamW
            try:
                self._backward(self.trainee, batch, self.run.objective.counts(batch).to(self.run.accelerator.device))
            finally:
                del moments
                self.optimizer.zero_grad()

        self.run.objective.advance(step / self.plan.steps)
        self.trainee.train()
        self.micro_batch_size = largest_fitting(self.micro_batch_size, attempt, self.run.accelerator)
        restore_random_state(state)

    def collate(self, step: int) -> tuple[list[Batch], Tensor]:
        """Return the micro-batches of this process and the items that each term counts in them `[terms]`."""
        accelerator, objective = self.run.accelerator, self.run.objective
        data, rows = self.plan.rows(step)
        pieces = micro_batches(rows, accelerator.process_index, accelerator.num_processes, self.micro_batch_size)
        draw = (self.run.settings.seed, step)
        micros = [replace(data.batch(piece, draw), real=real) for piece, real in pieces]
        own = [objective.counts(micro) for micro in micros if micro.real]
        return micros, torch.stack(own).sum(dim=0) if own else torch.zeros(len(objective.names)).double()

    def __call__(self, step: int, micros: list[Batch], counts: Tensor) -> Outcome:
        """Do one step (counted from 0)."""
        run, accelerator = self.run, self.run.accelerator
        self.trainee.train()
        self.tuning.advance(step)
        run.objective.advance(step / self.plan.steps)
        counts = accelerator.reduce(counts.to(accelerator.device), reduction="sum")
        set_learning_rate(self.optimizer, learning_rate(step, self.plan.steps, run.settings))
        sums = torch.zeros(len(run.objective.names), device=accelerator.device)
        for index, micro in enumerate(micros):
            last = index == len(micros) - 1
            waiting = nullcontext() if last else accelerator.no_sync(self.module)
            with waiting, explained(self.trainee, run.teacher, micro):
                sums += self._backward(self.module, micro, counts)
        limit = inf if run.settings.max_grad_norm is None else run.settings.max_grad_norm
        norm = accelerator.clip_grad_norm_(self.trainee.parameters(), limit)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        finite, ending = self._agree(norm, sums)
        self._update(finite)
        if finite:
            self._take_note(sums, counts)
        else:
            self._skip(step)
        return Outcome(norm, sums, counts, finite, ending)

    def _backward(self, module: nn.Module, micro: Batch, counts: Tensor) -> Tensor:
        """Add the gradient of a micro-batch; return the sum of each term `[terms]`."""
        accelerator, teacher = self.run.accelerator, self.run.teacher
        batch = micro.to(accelerator.device)
        taught = None
        if teacher is not None:
            with accelerator.autocast():
                taught = teacher(batch)
        with accelerator.autocast():
            loss, sums = module(batch, taught, counts)
        self.tuning.check(loss)
        # The wrapper averages gradients over the processes; `counts` already spans them.
        accelerator.backward(loss * (accelerator.num_processes * float(micro.real)))
        return sums if micro.real else torch.zeros_like(sums)

    def _agree(self, norm: Tensor, sums: Tensor) -> tuple[bool, bool]:
        """Return whether the step is finite and whether the run is asked to end: in any process, for all of them."""
        strange = ~(norm.isfinite() & sums.isfinite().all())
        asked = torch.full_like(strange, self.interruption.asked is not None)
        flags = self.run.accelerator.reduce(torch.stack([strange, asked]).float(), reduction="sum")
        strange, asked = (flags > 0).tolist()
        return not strange, asked

    def _update(self, finite: bool) -> None:
        """Change the weights; the scaler of fp16 skips what is not finite itself, and lowers its scale."""
        if finite and self.run.before_step is not None:
            self.run.before_step()
        if finite or self.run.accelerator.scaler is not None:
            self.optimizer.step()
        self.optimizer.zero_grad()

    def _take_note(self, sums: Tensor, counts: Tensor) -> None:
        run = self.run
        self.nonfinite.passed()
        if run.objective.balance is not None:
            run.objective.remember(run.accelerator.reduce(sums, reduction="sum"), counts)
        if run.after_step is not None:
            run.after_step()

    def _skip(self, step: int) -> None:
        """Write down which rows of the split made a step that is not finite."""
        run, scaler = self.run, self.run.accelerator.scaler
        data, chosen = self.plan.rows(step)
        rows = data.origins[chosen]
        scale = None if scaler is None else scaler.get_scale()
        run.records.write("skipped", step + 1, {"rows": rows.tolist(), "scale": scale})
        self.nonfinite.skipped(step + 1, rows, scale)
