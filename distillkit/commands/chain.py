"""The chain of `compress` at work: each step makes a variant, which is saved, loaded again and measured."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import set_seed

from distillkit.commands.compare import comparable, cut
from distillkit.commands.kept import Kept, Shelf
from distillkit.commands.measures import Measured
from distillkit.commands.parts import Data, load_model
from distillkit.commands.reloading import Written, check_in_fresh_process, check_reloaded, remember
from distillkit.commands.retraining import Retrainer, scratch_folder
from distillkit.compression.calibration import Calibration
from distillkit.compression.grid import Branch
from distillkit.compression.memory import enough_memory
from distillkit.compression.variant import Context, Corpus, Step, Variant
from distillkit.data.encode import Encoded, encode
from distillkit.errors import located
from distillkit.evaluation.evaluate import evaluate
from distillkit.models.live import LiveModel
from distillkit.models.onnx import OnnxModel
from distillkit.models.tokenizers import same_vocabulary
from distillkit.reporting.console import notice
from distillkit.schema import Config
from distillkit.signals import Batch
from distillkit.tasks.base import Task

START = "uncompressed"
EXAMPLES = 8  # rows for tracing exports and for the check that what was written loads again


@dataclass(frozen=True)
class Reading:
    """The dataset as models with one tokenizer read it.

    Attributes:
        config: Of the command.
        task: Of the models.
        data: The rows.
        tokenizer: Of the models; or an image processor.
    """

    config: Config
    task: Task
    data: Data
    tokenizer: Any

    def encode(self, split: str) -> Encoded:
        """Encode a split."""
        return encode(self.data.rows, split, self.task, self.tokenizer, self.data.labels)

    @cached_property
    def evaluated(self) -> Encoded:
        """The rows that the models are evaluated on."""
        return cut(self.encode(self.config.evaluate.split), self.config.evaluate.limit)

    @cached_property
    def example(self) -> Batch:
        """The first of these rows."""
        return self.evaluated.batch(range(min(EXAMPLES, len(self.evaluated))))

    @cached_property
    def calibration(self) -> Calibration:
        """Rows to look at activations with."""
        settings, seed = self.config.compress, self.config.train.seed
        load = partial(self.encode, settings.calibration_split)
        return Calibration(load, settings.calibration_rows, settings.calibration_batch_size, seed)


@dataclass
class Chain:
    """What every step needs, and what was measured so far.

    Attributes:
        config: Of the command.
        task: Of the models.
        data: The rows.
        steps: Name of a variant → the step that makes it.
        retrainer: Distils again; None where no step trains.
        accelerator: Its processes share the work.
        shelf: Of the variants that are whole.
        measured: Name → what was found out.
        kept: The variants that an earlier start of the same command has made.
    """

    config: Config
    task: Task
    data: Data
    steps: Mapping[str, Step]
    retrainer: Retrainer | None
    accelerator: Accelerator
    shelf: Shelf
    measured: dict[str, Measured] = field(default_factory=dict)
    kept: Mapping[str, Kept] = field(default_factory=dict)
    written: dict[str, Written] = field(default_factory=dict)
    readings: list[Reading] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        """Where the variants go."""
        return Path(self.config.output_dir) / "compressed"

    def run(self, branches: list[Branch], start: LiveModel | OnnxModel) -> dict[str, Measured]:
        """Measure the models to compare with and the model to start from, and make and measure every variant.

        Returns:
            What was measured, in order.
        """
        for name, path in self.config.evaluate.models.items():
            self._measure(name, path, self._load(path, f"evaluate.models.{name}"), {}, f"evaluate.models.{name}")
        scratch = scratch_folder(self.folder, self.accelerator.process_index)
        shutil.rmtree(scratch, ignore_errors=True)
        self.kept = self.shelf.find(branches)
        self.accelerator.wait_for_everyone()  # until all have looked
        path = self.config.compress.model
        self._measure(START, path, self._load(path, "compress.model"), {}, "compress.model")
        self._grow(branches, Variant(start), scratch)
        shutil.rmtree(scratch, ignore_errors=True)
        if self.config.compress.check_reload and self.accelerator.is_main_process:
            notice(f"loading {len(self.written)} variants in a fresh process")
            check_in_fresh_process(self.written)
        return self.measured

    def reading(self, tokenizer: Any) -> Reading:
        """Return the dataset as models with this tokenizer read it."""
        known = next((known for known in self.readings if same_vocabulary(known.tokenizer, tokenizer)), None)
        if known is None:
            known = Reading(self.config, self.task, self.data, tokenizer)
            self.readings.append(known)
        return known

    def _grow(self, branches: list[Branch], variant: Variant, scratch: Path) -> None:
        """Make the variants that follow one; each but the last starts from a copy, since steps change weights."""
        for branch in branches:
            source = variant if branch is branches[-1] else _fork(variant)
            made = self._make(branch, source, scratch / branch.name)
            self._grow(branch.after, made, scratch)

    def _make(self, branch: Branch, source: Variant, scratch: Path) -> Variant:
        name, key, path = branch.name, f"compress.steps.{branch.step}", self.folder / branch.name
        kept = self.kept.get(name)
        if kept is None:
            variant = self._compute(branch, source, scratch)
            if self.accelerator.is_main_process:
                variant.model.save(path)
            self.accelerator.wait_for_everyone()
            loaded = self._load(str(path), key)
            check_reloaded(variant.model, loaded, self._example(variant), path)
            if self.accelerator.is_main_process:
                self.shelf.write(name, variant)
        else:
            self._say(f"{name}: is there")
            loaded = self._load(str(path), key)
            masks = {weight: mask.to(self.accelerator.device) for weight, mask in kept.masks.items()}
            variant = Variant(loaded, masks, kept.notes)
            variant = _fork(variant) if branch.after else variant
        self._measure(name, str(path), loaded, variant.notes, key)
        if self.config.compress.check_reload:
            self.written[name] = remember(variant.model, self._example(variant), path)
        if "caution" in variant.notes:
            self._say(f"{name}: {variant.notes['caution']}")
        return variant

    def _compute(self, branch: Branch, source: Variant, scratch: Path) -> Variant:
        """Let a step work. What it draws by chance does not depend on what was done before."""
        step, reading = self.steps[branch.name], self.reading(source.model.tokenizer)
        self._say(f"{branch.name}: {type(step).__name__}")
        retrain = None if self.retrainer is None else partial(self.retrainer.retrain, branch.name, branch.step)
        corpus = Corpus(self.data.rows, reading.encode)
        context = Context(reading.example, self.config.train, retrain, scratch, reading.calibration, corpus)
        set_seed(self.config.train.seed)
        fix = "lower compress.calibration_rows and compress.calibration_batch_size"
        with located(f"compress.steps.{branch.step}"), enough_memory(fix):
            return step(source, context)

    def _example(self, variant: Variant) -> Batch:
        return self.reading(variant.model.tokenizer).example.to(self.accelerator.device)

    def _load(self, path: str, key: str) -> LiveModel | OnnxModel:
        return load_model(path, self.task, key, self.data.labels, self.accelerator.device)

    def _measure(self, name: str, path: str, model: LiveModel | OnnxModel, notes: Mapping[str, Any], key: str) -> None:
        rows = self.reading(model.tokenizer).evaluated
        outcome = evaluate(model, self.task, rows, self.config.evaluate.batch_size, self.accelerator)
        first = next(iter(self.measured.values()), None)
        if first is not None and rows is not first.rows:
            outcome = comparable(outcome, model.tokenizer, first, self.task, key)
        quality = self.task.best_metric
        self._say(f"{name}: {quality} {outcome.metrics[quality]:.4f}")
        self.measured[name] = Measured(path, model, rows, outcome, notes)

    def _say(self, text: str) -> None:
        if self.accelerator.is_main_process:
            notice(text)


def _fork(variant: Variant) -> Variant:
    """Copy what a step may change: PyTorch weights; an ONNX folder is never changed."""
    if isinstance(variant.model, LiveModel):
        return replace(variant, model=copy.deepcopy(variant.model), masks=dict(variant.masks))
    return variant
