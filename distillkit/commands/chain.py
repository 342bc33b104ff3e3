"""The chain of `compress` at work: each step makes a variant, which is saved, loaded again and measured."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator

from distillkit.commands.compare import cut
from distillkit.commands.measures import Measured
from distillkit.commands.parts import Data, load_model
from distillkit.commands.reloading import Written, check_in_fresh_process, check_reloaded, remember
from distillkit.commands.retraining import Retrainer, scratch_folder
from distillkit.compression.calibration import Calibration
from distillkit.compression.grid import Branch
from distillkit.compression.memory import enough_memory
from distillkit.compression.variant import Context, Corpus, Step, Variant
from distillkit.data.encode import Encoded, encode
from distillkit.errors import UserError, located
from distillkit.evaluation.evaluate import Evaluation, evaluate
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
        measured: Name → what was found out.
    """

    config: Config
    task: Task
    data: Data
    steps: Mapping[str, Step]
    retrainer: Retrainer | None
    accelerator: Accelerator
    measured: dict[str, Measured] = field(default_factory=dict)
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
            self._measure(name, path, {}, f"evaluate.models.{name}")
        scratch = scratch_folder(self.folder, self.accelerator.process_index)
        shutil.rmtree(scratch, ignore_errors=True)
        self._measure(START, self.config.compress.model, {}, "compress.model")
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
        name, step, key = branch.name, self.steps[branch.name], f"compress.steps.{branch.step}"
        self._say(f"{name}: {type(step).__name__}")
        reading = self.reading(source.model.tokenizer)
        retrain = None if self.retrainer is None else partial(self.retrainer.retrain, name, branch.step)
        corpus = Corpus(self.data.rows, reading.encode)
        context = Context(reading.example, self.config.train, retrain, scratch, reading.calibration, corpus)
        with located(key), enough_memory():
            variant = step(source, context)
        path = self.folder / name
        if self.accelerator.is_main_process:
            variant.model.save(path)
        self.accelerator.wait_for_everyone()
        loaded = self._measure(name, str(path), variant.notes, key).model
        example = self.reading(variant.model.tokenizer).example.to(self.accelerator.device)
        check_reloaded(variant.model, loaded, example, path)
        if self.config.compress.check_reload:
            self.written[name] = remember(variant.model, example, path)
        if "caution" in variant.notes:
            self._say(f"{name}: {variant.notes['caution']}")
        return variant

    def _measure(self, name: str, path: str, notes: Mapping[str, Any], key: str) -> Measured:
        model = load_model(path, self.task, key, self.data.labels, self.accelerator.device)
        rows = self.reading(model.tokenizer).evaluated
        outcome = evaluate(model, self.task, rows, self.config.evaluate.batch_size, self.accelerator)
        first = next(iter(self.measured.values()), None)
        if first is not None and rows is not first.rows:
            outcome = self._comparable(outcome, model.tokenizer, first, key)
        quality = self.task.best_metric
        self._say(f"{name}: {quality} {outcome.metrics[quality]:.4f}")
        self.measured[name] = Measured(path, model, rows, outcome, notes)
        return self.measured[name]

    def _comparable(self, outcome: Evaluation, tokenizer: Any, first: Measured, key: str) -> Evaluation:
        """Write the tokens that a model with another vocabulary predicts as the first model's.

        Raises:
            UserError: If the texts are cut into other pieces, so that there is nothing to pair.
        """
        predicted, expected = (found.answers.get("prediction", []) for found in (outcome, first.outcome))
        if len(predicted) != len(expected) or (
            not self.task.adds_head and any(np.size(a) != np.size(b) for a, b in zip(predicted, expected, strict=True))
        ):
            what = "another vocabulary cuts the texts of the evaluation into other pieces, which cannot be compared"
            raise UserError(what, where=key, fix="trim to the texts of the evaluation's split too (splits: null)")
        if self.task.adds_head or not isinstance(predicted[0], np.ndarray):
            return outcome
        old = first.model.tokenizer.get_vocab()
        numbers = np.array([old.get(token, -1) for token in tokenizer.convert_ids_to_tokens(range(len(tokenizer)))])
        return replace(outcome, answers={**outcome.answers, "prediction": [numbers[ids] for ids in predicted]})

    def _say(self, text: str) -> None:
        if self.accelerator.is_main_process:
            notice(text)


def _fork(variant: Variant) -> Variant:
    """Copy what a step may change: PyTorch weights; an ONNX folder is never changed."""
    if isinstance(variant.model, LiveModel):
        return replace(variant, model=copy.deepcopy(variant.model), masks=dict(variant.masks))
    return variant
