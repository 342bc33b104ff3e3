"""Variant: a model on its way through the compression steps; Step: what turns one variant into the next."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar, Protocol

from torch import Tensor

from distillkit.compression.calibration import NONE, Calibration
from distillkit.data.encode import Encoded
from distillkit.data.rows import Rows
from distillkit.errors import UserError
from distillkit.models.live import LiveModel
from distillkit.models.onnx import OnnxModel
from distillkit.schema import TrainSettings
from distillkit.signals import Batch

Masks = dict[str, Tensor]  # parameter name → bool, True where a weight is kept


class Kind(StrEnum):
    """What a step can start from."""

    float32 = "float32"
    half = "half"
    onnx = "onnx"
    int8 = "int8"
    packed = "packed"  # a compressed-tensors folder, or a GGUF file


TORCH = frozenset({Kind.float32, Kind.half})


@dataclass(frozen=True)
class Variant:
    """One model of the chain.

    Attributes:
        model: Of the variant. A step may change its weights in place: save a variant before the next step.
        masks: The weights that were pruned and have to stay zero; empty if none were.
        notes: What the step has to say in the report, such as "sparsity", "dtype" and, if there is one, a "caution".
    """

    model: LiveModel | OnnxModel
    masks: Masks = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Corpus:
    """The texts that the models are for.

    Attributes:
        rows: The dataset.
        encode: Split → its rows, as the model to start from reads them.
    """

    rows: Rows
    encode: Callable[[str], Encoded]


class Watch(Protocol):
    """What a step does around every optimiser step of its training; steps are counted from 0."""

    def before_step(self, step: int, steps: int) -> None:
        """Look at the gradients, `steps` in all."""
        ...

    def after_step(self, step: int, steps: int) -> None:
        """Change the weights."""
        ...


class Retraining(Protocol):
    """Distil into a model, in place, while the masked weights stay zero."""

    def __call__(self, live: LiveModel, masks: Masks, settings: TrainSettings, watch: Watch | None = None) -> None:
        """Train."""
        ...


@dataclass(frozen=True)
class Context:
    """What steps may use besides the variant.

    Attributes:
        example: Some real rows, for tracing and checking an export.
        settings: The recipe's train settings.
        retrain: Distils into a model, in place, while the masked weights stay zero;
            None where no step has `trains`.
        folder: Where this step may leave files of its own; they live as long as the chain.
        calibration: Rows to look at a model's activations with.
        corpus: The texts that the models are for.
    """

    example: Batch
    settings: TrainSettings
    retrain: Retraining | None
    folder: Path
    calibration: Calibration = NONE
    corpus: Corpus | None = None


class Step(ABC):
    """One compression step; the constructor takes what YAML gives and reads nothing.

    Attributes:
        accepts: The kinds of model it can start from.
        gives: The kind that it makes, or None if the kind stays.
        trains: Whether it calls the context's `retrain`.
        calibrates: Whether it looks at the context's `calibration` rows.
        masks: Whether it leaves weights that have to stay zero.
        reshapes: Whether it changes the shapes of weights, so that the masks of an earlier step would not fit.
        renumbers: Whether it changes which tokens the ids stand for, so that no teacher's logits can be compared.
    """

    accepts: ClassVar[frozenset[Kind]] = TORCH
    gives: ClassVar[Kind | None] = None
    trains: ClassVar[bool] = False
    calibrates: bool = False
    masks: ClassVar[bool] = False
    reshapes: ClassVar[bool] = False
    renumbers: ClassVar[bool] = False

    def check(self, start: LiveModel | OnnxModel) -> None:  # noqa: B027
        """Refuse what does not fit the model that the chain starts from, before anything is computed."""

    @abstractmethod
    def __call__(self, variant: Variant, context: Context) -> Variant:
        """Make the next variant."""


def check_chain(steps: Mapping[str, object], start: Kind) -> None:
    """Refuse an order in which a step gets a model that it cannot use, before anything is computed.

    Raises:
        UserError: With the key of the first such step.
    """
    kind, masked, renumbered = start, "", ""
    for name, step in steps.items():
        where = f"compress.steps.{name}"
        if not isinstance(step, Step):
            raise UserError(
                f"{type(step).__name__} is not a compression step",
                where=where,
                fix="derive it from distillkit.compression.variant.Step",
            )
        if kind not in step.accepts:
            allowed = " or ".join(sorted(step.accepts))
            raise UserError(
                f"{type(step).__name__} cannot follow: it starts from a {allowed} model, and gets {kind}",
                where=where,
                fix="change the order of compress.steps",
            )
        if masked and step.reshapes:
            what = f"{type(step).__name__} changes the shapes of the weights that '{masked}' has set to zero"
            raise UserError(what, where=where, fix=f"put it before '{masked}'")
        if renumbered and step.trains:
            what = f"no teacher knows the token ids that '{renumbered}' has left"
            raise UserError(what, where=where, fix=f"put it before '{renumbered}'")
        masked = name if step.masks else masked
        renumbered = name if step.renumbers else renumbered
        kind = step.gives or kind


def torch_model(variant: Variant) -> LiveModel:
    """Return the variant's PyTorch model.

    Raises:
        UserError: If it is an ONNX export.
    """
    if isinstance(variant.model, LiveModel):
        return variant.model
    raise UserError("this step needs PyTorch weights, and gets an ONNX model")
