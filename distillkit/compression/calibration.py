"""The rows that steps look at a model's activations with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from distillkit.data.encode import Encoded
from distillkit.errors import UserError
from distillkit.signals import Batch


@dataclass(frozen=True)
class Calibration:
    """Some rows of a split, always the same ones, loaded when a step first asks for them.

    Attributes:
        load: Encodes the split.
        rows: How many; all of them if there are fewer.
        batch_size: Rows of a batch.
        seed: Of the choice.
    """

    load: Callable[[], Encoded]
    rows: int = 128
    batch_size: int = 8
    seed: int = 0

    @cached_property
    def batches(self) -> Sequence[Batch]:
        """The rows, in batches on the CPU.

        Raises:
            UserError: If there are none.
        """
        encoded = self.load()
        chosen = np.random.default_rng(self.seed).permutation(len(encoded))[: self.rows]
        if not len(chosen):
            raise UserError("there are no rows to calibrate with", where="compress.calibration_rows")
        return [
            encoded.batch(np.sort(chosen[start : start + self.batch_size]))
            for start in range(0, len(chosen), self.batch_size)
        ]


def _nothing() -> Encoded:
    raise UserError("there are no rows to calibrate with", where="compress.calibration_split")


NONE = Calibration(_nothing)
