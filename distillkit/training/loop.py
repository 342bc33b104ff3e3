"""The training loop: one optimiser step after the other, exact for any micro-batch and any number of processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from math import ceil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distillkit.models.live import LiveModel
from distillkit.reporting.console import notice
from distillkit.signals import Batch
from distillkit.tasks.base import higher_is_better
from distillkit.training import checkpoint
from distillkit.training.engines import make_engine
from distillkit.training.interruption import Interruption
from distillkit.training.optimizer import learning_rate
from distillkit.training.run import FitResult, Run
from distillkit.training.step import Outcome, Stepper
from distillkit.training.stopping import agreed, check_patience
from distillkit.training.tuning import Tuning
from distillkit.training.writer import Writer


def fit(run: Run) -> FitResult:
    """Train the student; its weights are changed in place (to the best evaluated ones with `keep_best`)."""
    return _Fit(run).run_all()


class _Fit:
    def __init__(self, run: Run) -> None:
        self.run = run
        settings, accelerator = run.settings, run.accelerator
        check_patience(settings, run.evaluate is not None)
        self.plan = run.data.plan(settings)
        self.steps = self.plan.steps
        student, row = run.student.to(accelerator.device), run.data.batch([0]).to(accelerator.device)
        self.tuning = Tuning(student, settings, row, self.steps)
        self.tuning.prepare(accelerator)
        self.engine = make_engine(run, self.tuning.scales)
        self.interruption = Interruption()
        self.step = Stepper(run, self.plan, self.engine, self.tuning, self.interruption)
        self.writer = Writer(run.folder, accelerator, settings.keep_checkpoints, settings.async_checkpoint)
        self.evaluate_every = settings.evaluate_every or max(self.plan.steps_per_epoch, ceil(self.steps / 10))
        terms, device = len(run.objective.names), accelerator.device
        self.progress = checkpoint.Progress(
            0, torch.zeros(terms, device=device), torch.zeros(terms, dtype=torch.float64, device=device)
        )
        self.items = 0.0

    def run_all(self) -> FitResult:
        run = self.run
        if run.resume_from is not None:
            self._resume(run.resume_from)
        started = time.monotonic()
        first = self.progress.step
        if run.settings.auto_batch and first < self.steps:
            self._fit_memory(first)
        with (
            closing(self.plan),
            run.records.progress(run.title, self.steps) as display,
            ThreadPoolExecutor(1) as background,
            self.interruption,
        ):
            for step, micros, counts in self._prefetch(first, background):
                self.writer.check()
                outcome = self.step(step, micros, counts)
                self._take_note(step + 1, outcome)
                status = self._log(outcome.norm, started) if self._due(self.run.settings.log_every) else None
                display.update(step + 1, status)
                if run.evaluate is not None and self._due(self.evaluate_every):
                    self._evaluate(run.evaluate)
                if self.progress.patience.ends(run.settings.patience):
                    if not self._due(run.settings.log_every):
                        self._log(outcome.norm, started)
                    break
                every = run.settings.checkpoint_every
                if step + 1 < self.steps and (outcome.ending or (every is not None and (step + 1) % every == 0)):
                    self._save_checkpoint()
                if outcome.ending:
                    self.writer.wait()
                    self.interruption.end()
            self.writer.wait()
        progress = self.progress
        self.engine.finish()
        if run.evaluate is not None and run.settings.keep_best and progress.best_step not in (None, progress.step):
            run.accelerator.wait_for_everyone()
            checkpoint.load_weights(run.student, self._best_path)
        self.tuning.finish(run.adapter if run.accelerator.is_main_process else None)
        seconds = time.monotonic() - started
        best = (progress.best_step, progress.best_value, run.best_metric)
        early = progress.step < self.steps
        return FitResult(progress.step, *best, seconds, self.items, early, self.tuning.size, self.step.nonfinite.total)

    def _resume(self, path: Path) -> None:
        accelerator, engine = self.run.accelerator, self.engine
        if accelerator.is_main_process:
            checkpoint.restore_best(path, self.run.folder)
        self.progress = checkpoint.load_checkpoint(
            path, engine.trainee, engine.optimizer, accelerator, accelerator.device
        )
        self.plan.start(self.progress.place)

    def _fit_memory(self, step: int) -> None:
        wanted = self.step.micro_batch_size
        self.step.fit_memory(step)
        if self.step.micro_batch_size < wanted and self.run.accelerator.is_main_process:
            notice(f"train.auto_batch: {self.step.micro_batch_size} rows a micro-batch fit, {wanted} do not")

    def _due(self, every: int) -> bool:
        return self.progress.step % every == 0 or self.progress.step == self.steps

    def _prefetch(self, first: int, background: ThreadPoolExecutor) -> Iterator[tuple[int, list[Batch], Tensor]]:
        """Collate the next step's micro-batches while the current step runs."""
        pending = background.submit(self.step.collate, first)
        for step in range(first, self.steps):
            micros, counts = pending.result()
            if step + 1 < self.steps:
                pending = background.submit(self.step.collate, step + 1)
            yield step, micros, counts

    def _take_note(self, steps: int, outcome: Outcome) -> None:
        self.progress.step = steps
        if outcome.finite:
            self.progress.window_sums += outcome.sums
            self.progress.window_counts += outcome.counts

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
        values["epoch"] = round(self.plan.epoch(progress.step), 4)
        values["grad_norm"] = float(norm)
        run.records.write("train", progress.step, values)
        parts = " ".join(f"{name} {value:.3f}" for name, value in terms.items()) if len(terms) > 1 else ""
        return f"loss {loss:.4f}{f' ({parts})' if parts else ''} · lr {rate:.1e} · {speed:,.0f} items/s"

    def _evaluate(self, evaluate: Callable[[LiveModel], dict[str, float]]) -> None:
        run, progress = self.run, self.progress
        with self.engine.whole_student() as student:
            metrics = evaluate(student.eval())
            run.records.write("evaluate", progress.step, metrics)
            value = agreed(metrics[run.best_metric], run.accelerator)
            best, higher = progress.best_value, higher_is_better(run.best_metric)
            progress.patience.see(value, higher, run.settings.min_delta)
            if best is None or (value > best if higher else value < best):
                progress.best_step, progress.best_value = progress.step, value
                if run.settings.keep_best and run.accelerator.is_main_process:
                    checkpoint.save_weights(student, self._best_path)

    @property
    def _best_path(self) -> Path:
        return self.run.folder / checkpoint.BEST

    def _save_checkpoint(self) -> None:
        run = self.run
        self.progress.place = self.plan.place(self.progress.step)
        self.writer.save(self.engine.trainee, self.engine.optimizer, self.progress, run.digest)
