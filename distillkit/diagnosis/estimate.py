"""What one training would need: memory of each device and time, from a dry run on fake tensors."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from math import ceil

import numpy as np
import torch
from torch import Tensor

from distillkit.data.encode import Encoded
from distillkit.diagnosis.meter import Cost, Kept, Meter
from distillkit.diagnosis.outline import Outlines, Selection
from distillkit.diagnosis.speed import PRECISIONS, Speed
from distillkit.diagnosis.tuned import tuned
from distillkit.losses.chunks import BLOCK, CHUNK
from distillkit.losses.objective import Objective
from distillkit.models.live import LiveModel
from distillkit.schema import Precision, TrainSettings
from distillkit.signals import Batch, DenseLogits, HeadLogits, Signal

FLOAT = 4  # bytes
MOMENTS = 2  # of AdamW, in float32
STEP_PASSES = 10  # over the trained weights: what clipping and AdamW read and write
LOSS_PASSES = 8  # over the logits: what the losses on a chunk read and write
MICRO_BATCHES = 32  # of the sample that are looked at
BLOCK_TENSORS = 6  # of a block's size that the losses hold at once


@dataclass(frozen=True)
class Memory:
    """Bytes of one device, where every process holds the whole model.

    Attributes:
        weights: Of the student.
        gradients: Of what is trained.
        optimiser: AdamW's moments.
        teacher: Weights of the live teacher.
        activations: What the student keeps for its backward pass over the longest micro-batch.
        vocabulary: Working memory of the pass over the vocabulary.
        copies: Further gradients that are there from the start: of earlier micro-batches, or DDP's buckets.
        passing: The most at a time of what a micro-batch makes: gradients, activations, vocabulary, and what is soon
            forgotten.
    """

    weights: int
    gradients: int
    optimiser: int
    teacher: int
    activations: int
    vocabulary: int
    copies: int
    passing: int

    @property
    def peak(self) -> int:
        """The most at a time: gradients are made while activations are freed."""
        return self.weights + self.optimiser + self.teacher + self.copies + self.passing


@dataclass(frozen=True)
class Estimate:
    """What a training would need.

    Attributes:
        parameters: Of the student.
        trained: Of them and beside them (LoRA).
        teacher_parameters: Of the live teacher that is asked at every step, or 0.
        steps: Optimiser steps; None where the number of rows is not known.
        tokens: Of one optimiser step, padding included (rows, where rows are no texts).
        longest: Rows and tokens of the micro-batch that takes the most memory.
        memory: Of one device.
        step: Cost of one optimiser step on one device.
        analytic: 6 · N · tokens (+ 2 · N · tokens of the teacher), N without embeddings: to compare with `step.flops`.
    """

    parameters: int
    trained: int
    teacher_parameters: int
    steps: int | None
    tokens: int
    longest: tuple[int, int]
    memory: Memory
    step: Cost
    analytic: float

    def step_seconds(self, speed: Speed, precision: Precision) -> float:
        """Return the seconds of a step, if every operation runs as fast as those that were measured."""
        arithmetic = self.step.flops / speed.matmul[precision.value]
        return arithmetic + self.step.bytes / speed.bandwidth + self.step.calls * speed.overhead


@dataclass(frozen=True)
class Training:
    """A training without weights.

    Attributes:
        student: Outline.
        teacher: Outline of the live teacher that is asked at every step; None if there is none.
        objective: Bound, if it looks inside the models.
        sample: Some encoded training rows.
        steps: Of the whole run; None if not known.
        settings: Of the run.
        processes: That share a step; on a machine without GPUs they share its cores too.
    """

    student: LiveModel
    teacher: LiveModel | None
    objective: Objective
    sample: Encoded
    steps: int | None
    settings: TrainSettings
    processes: int


def estimate(training: Training, outlines: Outlines) -> Estimate:
    """Run one step on fake tensors and add up what it takes."""
    settings = training.settings
    share = ceil(settings.batch_size / training.processes)
    micro = min(settings.micro_batch_size or share, share)
    longest, typical = choose_batches(training.sample, micro, settings)
    items = [int(batch.counted.sum()) for batch in (longest, typical)]
    with outlines.faking():
        row = outlines.batch(longest)
        with tuned(training.student, settings, row, training.steps or 1) as trained:
            needed, cost = _micro_batch(training, outlines, longest, items[0])
            if typical is not longest:
                _, cost = _micro_batch(training, outlines, typical, items[1])
    apart = training.processes if outlines.device.type == "cuda" else 1  # processes on a CPU share it
    several = ceil(share / micro) > 1
    memory = _memory(training, trained, needed, copies=int(several) + int(training.processes > 1))
    after = Cost(bytes=STEP_PASSES * FLOAT * trained)
    rows, length = _shape(typical)
    tokens = rows * length * settings.batch_size // micro
    return Estimate(
        parameters=training.student.count_parameters(),
        trained=trained,
        teacher_parameters=0 if training.teacher is None else training.teacher.count_parameters(),
        steps=training.steps,
        tokens=tokens,
        longest=_shape(longest),
        memory=memory,
        step=(cost * (share / micro) + after) * (training.processes / apart),
        analytic=analytic_flops(training, tokens / apart),
    )


def analytic_flops(training: Training, tokens: float) -> float:
    """Return 6 N tokens for the student and 2 N tokens for the teacher, N without the embeddings."""
    teacher = 0 if training.teacher is None else _multiplied(training.teacher)
    return tokens * (6 * _multiplied(training.student) + 2 * teacher)


def _multiplied(live: LiveModel) -> int:
    """Count the parameters that every token is multiplied with: those outside the input embeddings, unless tied."""
    inputs, outputs = live.model.get_input_embeddings(), live.model.get_output_embeddings()
    tied = outputs is not None and outputs.weight is inputs.weight
    positions = [m for m in live.model.modules() if isinstance(m, torch.nn.Embedding) and m is not inputs]
    apart = positions if tied or not isinstance(inputs, torch.nn.Embedding) else [*positions, inputs]
    return live.count_parameters() - sum(module.weight.numel() for module in apart)


def choose_batches(sample: Encoded, micro: int, settings: TrainSettings) -> tuple[Batch, Batch]:
    """Return the micro-batch of the sample with the most tokens, and one with about the average number."""
    order = np.random.default_rng(settings.seed).permutation(len(sample))[: MICRO_BATCHES * micro]
    if settings.group_by_length and not sample.packed:
        order = order[np.argsort(sample.lengths[order], kind="stable")]
    groups = np.resize(order, (ceil(len(order) / micro), micro))
    batches = [sample.batch(group, (settings.seed, 0)) for group in groups]
    sizes = np.array([np.prod(_shape(batch)) for batch in batches])
    return batches[int(sizes.argmax())], batches[int(np.abs(sizes - sizes.mean()).argmin())]


def _shape(batch: Batch) -> tuple[int, int]:
    """Return rows and tokens of a batch."""
    if "input_ids" not in batch.inputs:
        return len(batch.counted), 1
    rows, length = batch.inputs["input_ids"].shape
    return rows, length


@dataclass(frozen=True)
class _Needed:
    activations: int
    vocabulary: int
    passing: int


def _micro_batch(training: Training, outlines: Outlines, real: Batch, items: int) -> tuple[_Needed, Cost]:
    """Run teacher and student over a micro-batch with so many items."""
    batch = outlines.batch(real)
    objective, student, teacher = training.objective, training.student, training.teacher
    precision = PRECISIONS[training.settings.precision.value]
    kept = Kept([student], batch.inputs.values())
    with ExitStack() as stack:
        meter = stack.enter_context(Meter())
        stack.enter_context(Selection(batch.counted, items))
        half = precision is not torch.float32
        stack.enter_context(torch.autocast(outlines.device.type, dtype=precision if half else None, enabled=half))
        taught = None
        if teacher is not None:
            with torch.no_grad():
                taught = teacher.eval()(batch, objective.wanted_of_teacher)
        with kept:
            said = student.train()(batch, objective.wanted_of_student)
        between = meter.live
        torch.autograd.backward([tensor.float().sum() for tensor in _outputs(said) if tensor.requires_grad])
    vocabulary, cost = _vocabulary(said, taught, items, outlines.device, precision)
    student.zero_grad()
    shown = sum(tensor.nbytes for tensor in _outputs(taught))
    passing = max(between + vocabulary, meter.peak + _head_gradient(said))
    return _Needed(kept.bytes + shown, vocabulary, passing), meter.cost + cost


def _outputs(signal: Signal | None) -> list[Tensor]:
    """Return the tensors of a signal that a loss starts from."""
    if signal is None:
        return []
    logits = signal.logits
    first = [logits.hidden] if isinstance(logits, HeadLogits) else []
    return [*first, *([logits.values] if isinstance(logits, DenseLogits) else []), *signal.features.values()]


def _vocabulary(
    said: Signal, taught: Signal | None, items: int, device: torch.device, precision: torch.dtype
) -> tuple[int, Cost]:
    """Return the working memory and the cost of the pass over the vocabulary, which needs values to be run."""
    heads = [s.logits for s in (said, taught) if s is not None and isinstance(s.logits, HeadLogits)]
    if not isinstance(said.logits, HeadLogits):
        return 0, Cost()
    own = said.logits
    products = [6 if own.weight.requires_grad else 4, *([2] * (len(heads) - 1))]
    flops = sum(items * n * head.classes * head.hidden.shape[1] for n, head in zip(products, heads, strict=True))
    logits = items * max(head.classes for head in heads)
    chunk = min(logits, CHUNK[device.type])
    block = min(chunk, BLOCK * min(torch.get_num_threads(), 8)) if device.type == "cpu" else chunk
    size = precision.itemsize
    copies = sum(head.weight.numel() * size for head in heads) if size < FLOAT else 0
    gradients = _head_gradient(said) + own.hidden.nbytes
    memory = chunk * size * len(heads) + block * FLOAT * BLOCK_TENSORS + copies + gradients
    return int(memory), Cost(flops, LOSS_PASSES * FLOAT * logits, LOSS_PASSES * ceil(logits / block))


def _head_gradient(said: Signal) -> int:
    """Return the size of the head's gradient, which the pass over the vocabulary makes before the backward pass."""
    head = said.logits
    return FLOAT * head.weight.numel() if isinstance(head, HeadLogits) and head.weight.requires_grad else 0


def _memory(training: Training, trained: int, needed: _Needed, copies: int) -> Memory:
    return Memory(
        weights=_bytes(training.student),
        gradients=FLOAT * trained,
        optimiser=MOMENTS * FLOAT * trained,
        teacher=0 if training.teacher is None else _bytes(training.teacher),
        activations=needed.activations,
        vocabulary=needed.vocabulary,
        copies=copies * FLOAT * trained,
        passing=needed.passing,
    )


def _bytes(live: LiveModel) -> int:
    return sum(parameter.nbytes for parameter in live.parameters())
