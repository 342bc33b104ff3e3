"""Which rows make up each step of a run, whether they are held as a whole or streamed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from distillkit.data.batches import BatchPlan, planned_steps
from distillkit.schema import TrainSettings
from distillkit.signals import Batch

if TYPE_CHECKING:
    from distillkit.data.encode import Counts, Encoded


@dataclass(frozen=True)
class Place:
    """Where a step stands in a stream, for a run that resumes.

    Attributes:
        step: The first step of its window.
        epoch: How often the stream had begun anew.
        record: Records of the source before the window.
        counts: What had become of the rows before the window, until the stream began anew.
    """

    step: int
    epoch: int
    record: int
    counts: Counts


class Plan(Protocol):
    """The global batches of a run: a function of the seed and the step, whatever the number of processes.

    Attributes:
        steps: Of the run.
        steps_per_epoch: 0 where it is not known.
    """

    steps: int
    steps_per_epoch: int

    def start(self, place: Place | None) -> None:
        """Begin at a step that is not the first: `place` of it."""
        ...

    def rows(self, step: int) -> tuple[Encoded, np.ndarray]:
        """Return some rows, and the indices of a step's rows (counted from 0) among them."""
        ...

    def epoch(self, step: int) -> float:
        """Return how many epochs are over after so many steps."""
        ...

    def place(self, step: int) -> Place | None:
        """Return what `start` must be told to begin at a step; None if nothing."""
        ...

    def close(self) -> None:
        """Stop what goes on in the background."""
        ...


class TrainingRows(Protocol):
    """Rows to train on: a split that is held as a whole, or a stream."""

    @property
    def counts(self) -> Counts:
        """What became of the rows."""
        ...

    @property
    def packed(self) -> bool:
        """Whether several texts share a row of a batch."""
        ...

    def describe(self) -> str:
        """Say how much there is."""
        ...

    def plan(self, settings: TrainSettings) -> Plan:
        """Plan the batches of a run."""
        ...

    def packing(self) -> TrainingRows:
        """Return the same rows, of which several texts share a row of a batch."""
        ...

    def batch(self, indices: Sequence[int] | np.ndarray, draw: tuple[int, ...] = ()) -> Batch:
        """Collate some of the (first) rows."""
        ...


class SplitPlan:
    """The global batches of a run over a split that is held as a whole; see `BatchPlan`."""

    def __init__(self, data: Encoded, settings: TrainSettings) -> None:
        grouped = settings.group_by_length and not data.packed  # packing needs texts of all lengths
        self.data = data
        self.batches = BatchPlan(data.lengths, settings.batch_size, settings.seed, grouped)
        self.steps = planned_steps(len(data), settings)
        self.steps_per_epoch = self.batches.steps_per_epoch

    def start(self, place: Place | None) -> None:
        """Do nothing: a step stands for itself."""

    def rows(self, step: int) -> tuple[Encoded, np.ndarray]:
        """Return the split and the indices of a step's rows."""
        return self.data, self.batches.rows(step)

    def epoch(self, step: int) -> float:
        """Return how many epochs are over after so many steps."""
        return step / self.steps_per_epoch

    def place(self, step: int) -> Place | None:  # noqa: ARG002
        """Return None."""
        return None

    def close(self) -> None:
        """Do nothing."""
