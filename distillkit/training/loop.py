"""The training loop: one optimiser step after the other, exact for any micro-batch and any number of processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from math import ceil, inf
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from distillkit.data.batches import BatchPlan, micro_batches
from distillkit.data.encode import Encoded
from distillkit.losses.objective import Objective
from distillkit.models.live import LiveModel
from distillkit.schema import TrainSettings
from distillkit.signals import Batch, Model, Signal
from distillkit.tasks.base import higher_is_better
from distillkit.training import checkpoint
from distillkit.training.interruption import Interruption
from distillkit.training.nonfinite import NonFinite
from distillkit.training.optimizer import learning_rate, make_optimizer, set_learning_rate
from distillkit.training.records import Records
from distillkit.training.stopping import agreed, check_patience
from distillkit.training.tuning import Tuning


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


@dataclass
class FitResult:
    """What a training run came to."""

    steps: int
    best_step: int | None
    best_value: float | None
    best_metric: str
    seconds: float
    items: float
    stopped_early: bool
    trained_parameters: int
    skipped_steps: int


@dataclass
class Run:
    """Everything that one call of `fit` works with."""

    student: LiveModel
    teacher: Model | None
    objective: Objective
    data: Encoded
    settings: TrainSettings
    accelerator: Accelerator
    records: Records
    folder: Path
    digest: str
    title: str = "train"
    evaluate: Callable[[LiveModel], dict[str, float]] | None = None
    best_metric: str = "loss"
    after_step: Callable[[], None] | None = None
    resume_from: Path | None = None
    adapter: Path | None = None  # where to write LoRA's adapters before they are merged


def planned_steps(rows: int, settings: TrainSettings) -> int:
    """Return the number of optimiser steps of a run over so many rows."""
    return settings.max_steps or max(1, ceil(settings.epochs * ceil(rows / settings.batch_size)))


def fit(run: Run) -> FitResult:
    """Train the student; its weights are changed in place (to the best evaluated ones with `keep_best`)."""
    return _Fit(run).run_all()


class _Fit:
    def __init__(self, run: Run) -> None:
        self.run = run
        settings, accelerator = run.settings, run.accelerator
        check_patience(settings, run.evaluate is not None)
        self.steps = planned_steps(len(run.data), settings)
        student, row = run.student.to(accelerator.device), run.data.batch([0]).to(accelerator.device)
        self.tuning = Tuning(student, settings, row, self.steps)
        self.tuning.prepare(accelerator)
        self.trainee = Trainee(student, run.objective).to(accelerator.device)
        optimizer = make_optimizer(self.trainee, settings, self.tuning.scales)
        self.module, self.optimizer = accelerator.prepare(self.trainee, optimizer)
        grouped = settings.group_by_length and not run.data.packed  # packing needs texts of all lengths
        self.plan = BatchPlan(run.data.lengths, settings.batch_size, settings.seed, grouped)
        self.evaluate_every = settings.evaluate_every or max(self.plan.steps_per_epoch, ceil(self.steps / 10))
        share = ceil(settings.batch_size / accelerator.num_processes)
        self.micro_batch_size = min(settings.micro_batch_size or share, share)
        terms, device = len(run.objective.names), accelerator.device
        self.progress = checkpoint.Progress(
            0, torch.zeros(terms, device=device), torch.zeros(terms, dtype=torch.float64, device=device)
        )
        self.items = 0.0
        self.nonfinite = NonFinite(settings.max_nonfinite_steps)
        self.interruption = Interruption()

    def run_all(self) -> FitResult:
        run = self.run
        if run.resume_from is not None:
            self.progress = checkpoint.load_checkpoint(
                run.resume_from, self.trainee, self.optimizer, run.accelerator, run.accelerator.device
            )
        started = time.monotonic()
        first = self.progress.step
        with (
            run.records.progress(run.title, self.steps) as display,
            ThreadPoolExecutor(1) as background,
            self.interruption,
        ):
            for step, micros, counts in self._prefetch(first, background):
                self.trainee.train()
                self.tuning.advance(step)
                norm, ending = self._step(step, micros, counts)
                self.progress.step = step + 1
                status = self._log(norm, started) if self._due(self.run.settings.log_every) else None
                display.update(step + 1, status)
                if run.evaluate is not None and self._due(self.evaluate_every):
                    self._evaluate(run.evaluate)
                if self.progress.patience.ends(run.settings.patience):
                    if not self._due(run.settings.log_every):
                        self._log(norm, started)
                    break
                every = run.settings.checkpoint_every
                if step + 1 < self.steps and (ending or (every is not None and (step + 1) % every == 0)):
                    self._save_checkpoint()
                if ending:
                    self.interruption.end()
        progress = self.progress
        if run.evaluate is not None and run.settings.keep_best and progress.best_step not in (None, progress.step):
            run.accelerator.wait_for_everyone()
            checkpoint.load_weights(self.trainee, self._best_path)
        self.tuning.finish(run.adapter if run.accelerator.is_main_process else None)
        seconds = time.monotonic() - started
        best = (progress.best_step, progress.best_value, run.best_metric)
        early = progress.step < self.steps
        return FitResult(progress.step, *best, seconds, self.items, early, self.tuning.size, self.nonfinite.total)

    def _due(self, every: int) -> bool:
        return self.progress.step % every == 0 or self.progress.step == self.steps

    def _prefetch(self, first: int, background: ThreadPoolExecutor) -> Iterator[tuple[int, list[Batch], Tensor]]:
        """Collate the next step's micro-batches while the current step runs."""
        pending = background.submit(self._collate, first)
        for step in range(first, self.steps):
            micros, counts = pending.result()
            if step + 1 < self.steps:
                pending = background.submit(self._collate, step + 1)
            yield step, micros, counts

    def _collate(self, step: int) -> tuple[list[Batch], Tensor]:
        accelerator = self.run.accelerator
        pieces = micro_batches(
            self.plan.rows(step), accelerator.process_index, accelerator.num_processes, self.micro_batch_size
        )
        draw = (self.run.settings.seed, step)
        micros = [replace(self.run.data.batch(rows, draw), real=real) for rows, real in pieces]
        own = [self.run.objective.counts(micro) for micro in micros if micro.real]
        return micros, torch.stack(own).sum(dim=0) if own else torch.zeros(len(self.run.objective.names)).double()

    def _step(self, step: int, micros: list[Batch], counts: Tensor) -> tuple[Tensor, bool]:
        """Do one optimiser step; return the gradient's norm before clipping, and whether the run is asked to end.

        A step whose loss or gradient is not finite in any process changes no weight.
        """
        run, accelerator = self.run, self.run.accelerator
        run.objective.advance(step / self.steps)
        counts = accelerator.reduce(counts.to(accelerator.device), reduction="sum")
        set_learning_rate(self.optimizer, learning_rate(step, self.steps, run.settings))
        sums = torch.zeros_like(self.progress.window_sums)
        for index, micro in enumerate(micros):
            last = index == len(micros) - 1
            with nullcontext() if last else accelerator.no_sync(self.module):
                sums += self._backward(micro, counts)
        limit = inf if run.settings.max_grad_norm is None else run.settings.max_grad_norm
        norm = accelerator.clip_grad_norm_(self.trainee.parameters(), limit)
        finite, ending = self._agree(norm, sums)
        if finite or accelerator.scaler is not None:  # the scaler skips it too, and lowers its scale
            self.optimizer.step()
        self.optimizer.zero_grad()
        if finite:
            self._take_note(sums, counts)
        else:
            self._skip(step)
        return norm, ending

    def _agree(self, norm: Tensor, sums: Tensor) -> tuple[bool, bool]:
        """Return whether the step is finite and whether the run is asked to end: in any process, for all of them."""
        strange = ~(norm.isfinite() & sums.isfinite().all())
        asked = torch.full_like(strange, self.interruption.asked is not None)
        flags = self.run.accelerator.reduce(torch.stack([strange, asked]).float(), reduction="sum")
        strange, asked = (flags > 0).tolist()
        return not strange, asked

    def _take_note(self, sums: Tensor, counts: Tensor) -> None:
        """Add what a step came to to the objective's memory and to the window of the log."""
        run = self.run
        self.nonfinite.passed()
        if run.objective.balance is not None:
            run.objective.remember(run.accelerator.reduce(sums, reduction="sum"), counts)
        self.progress.window_sums += sums
        self.progress.window_counts += counts
        if run.after_step is not None:
            run.after_step()

    def _skip(self, step: int) -> None:
        """Write down which rows of the split made a step that is not finite."""
        run, scaler = self.run, self.run.accelerator.scaler
        rows = run.data.origins[self.plan.rows(step)]
        scale = None if scaler is None else scaler.get_scale()
        run.records.write("skipped", step + 1, {"rows": rows.tolist(), "scale": scale})
        self.nonfinite.skipped(step + 1, rows, scale)

    def _backward(self, micro: Batch, counts: Tensor) -> Tensor:
        """Add the gradient of a micro-batch; return the sum of each term `[terms]`."""
        accelerator = self.run.accelerator
        batch = micro.to(accelerator.device)
        taught = None
        if self.run.teacher is not None:
            with accelerator.autocast():
                taught = self.run.teacher(batch)
        loss, sums = self.module(batch, taught, counts)
        self.tuning.check(loss)
        # The wrapper averages gradients over the processes; `counts` already spans them.
        accelerator.backward(loss * (accelerator.num_processes * float(micro.real)))
        return sums if micro.real else torch.zeros_like(sums)

    def _log(self, norm: Tensor, started: float) -> str:
        run, progress, counts = self.run, self.progress, self.progress.window_counts
        sums = run.accelerator.reduce(progress.window_sums.double(), reduction="sum")
        loss = run.objective.total(sums, counts)
        terms = dict(zip(run.objective.names, (sums / counts.clamp(min=1)).tolist(), strict=True))
        rate = learning_rate(progress.step - 1, self.steps, run.settings)
        items = counts.max().item()
        self.items += items
        progress.window_sums.zero_()
        progress.window_counts.zero_()
        speed = self.items / max(time.monotonic() - started, 1e-9)
        values: dict[str, Any] = {"loss": loss, "terms": terms, "learning_rate": rate, "items": int(items)}
        values["epoch"] = round(progress.step / self.plan.steps_per_epoch, 4)
        values["grad_norm"] = float(norm)
        run.records.write("train", progress.step, values)
        parts = " ".join(f"{name} {value:.3f}" for name, value in terms.items()) if len(terms) > 1 else ""
        return f"loss {loss:.4f}{f' ({parts})' if parts else ''} · lr {rate:.1e} · {speed:,.0f} items/s"

    def _evaluate(self, evaluate: Callable[[LiveModel], dict[str, float]]) -> None:
        run, progress = self.run, self.progress
        self.trainee.eval()
        metrics = evaluate(run.student)
        run.records.write("evaluate", progress.step, metrics)
        value = agreed(metrics[run.best_metric], run.accelerator)
        best, higher = progress.best_value, higher_is_better(run.best_metric)
        progress.patience.see(value, higher, run.settings.min_delta)
        if best is None or (value > best if higher else value < best):
            progress.best_step, progress.best_value = progress.step, value
            if run.settings.keep_best and run.accelerator.is_main_process:
                checkpoint.save_weights(self.trainee, self._best_path)

    @property
    def _best_path(self) -> Path:
        return self.run.folder / checkpoint.BEST

    def _save_checkpoint(self) -> None:
        run = self.run
        checkpoint.save_checkpoint(
            run.folder,
            self.trainee,
            self.optimizer,
            self.progress,
            run.digest,
            run.accelerator,
            run.settings.keep_checkpoints,
        )
