"""Where a model differs from its teacher: the examples on which they disagree most."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from distillkit.evaluation.agreement import continuous
from distillkit.evaluation.examples import Examples
from distillkit.tasks.base import Answers

LONGEST = 600  # characters of a text that is shown


def disagreement(one: Answers, other: Answers, by_loss: bool = False) -> tuple[str, np.ndarray]:
    """Measure how much two models disagree about each example.

    Args:
        one: Of a model.
        other: Of another one, about the same examples.
        by_loss: Whether their predictions say nothing to a reader.

    Returns:
        What is measured, and float64 `[examples]`, zero where they agree: half the summed difference of the
        probabilities where there are any; else the difference of the losses, nats an item, if it shall be; of the
        predictions if they are real numbers; else the share of predictions that differ.
    """
    if "probabilities" in one:
        pairs = zip(one["probabilities"], other["probabilities"], strict=True)
        return "difference of probabilities", np.array([_distance(a, b) for a, b in pairs])
    if by_loss:
        return "difference of losses", np.abs(_loss_per_item(one) - _loss_per_item(other))
    said = "text" if "text" in one and "text" in other else "prediction"
    pairs = zip(one[said], other[said], strict=True)
    if continuous(one):
        return "difference of predictions", np.array([float(np.abs(np.subtract(a, b)).mean()) for a, b in pairs])
    return "share of different predictions", np.array([_unequal(a, b) for a, b in pairs])


def most_different(model: Answers, teacher: Answers, examples: Examples, count: int) -> list[dict[str, Any]]:
    """Return the examples that a model and its teacher disagree about most, the most different one first.

    Where several are equally different, those with the larger difference of losses come first.

    Returns:
        For each its "row" among the answers, "inputs", "label", what "teacher" and "model" said ("prediction",
        "confidence" and "loss" where there are such), "measure" and "difference".
    """
    measure, apart = disagreement(model, teacher, by_loss=examples.pieces)
    apart = np.nan_to_num(apart)
    ties = np.zeros(len(apart))
    if "loss" in model and "items" in model:
        ties = np.nan_to_num(np.abs(_loss_per_item(model) - _loss_per_item(teacher)))
    order = np.lexsort((-ties, -apart))[:count]
    return [
        {
            "row": int(index),
            "inputs": examples.inputs(int(index)),
            "label": examples.label(int(index)),
            "teacher": said(teacher, int(index), examples),
            "model": said(model, int(index), examples),
            "measure": measure,
            "difference": float(apart[index]),
        }
        for index in order
        if apart[index] > 0
    ]


def said(answers: Mapping[str, list[Any]], index: int, examples: Examples) -> dict[str, Any]:
    """Return what a model said about one example, readable: prediction, confidence and loss."""
    found: dict[str, Any] = {}
    if "text" in answers:
        found["prediction"] = answers["text"][index]
    elif not examples.pieces:  # of a piece of text, the token ids say nothing to a reader
        found["prediction"] = examples.named(answers["prediction"][index])
    if "probabilities" in answers and not examples.several:
        found["confidence"] = float(np.max(answers["probabilities"][index]))
    if "loss" in answers:
        items = answers["items"][index] if "items" in answers else 1
        found["loss"] = float(answers["loss"][index]) / max(items, 1)
    return found


def shortened(value: Any, longest: int = LONGEST) -> Any:
    """Cut long texts inside an example, for showing."""
    if isinstance(value, str):
        return value if len(value) <= longest else f"{value[:longest].rstrip()} …"
    if isinstance(value, dict):
        return {name: shortened(inner, longest) for name, inner in value.items()}
    return [shortened(inner, longest) for inner in value[:longest]] if isinstance(value, list) else value


def _distance(a: Any, b: Any) -> float:
    """Return half the L1 distance of two distributions, averaged over several of one example."""
    apart = np.abs(np.atleast_2d(np.asarray(a, dtype=np.float64)) - np.atleast_2d(np.asarray(b, dtype=np.float64)))
    return float(apart.sum(axis=-1).mean() / 2) if apart.size else 0.0


def _loss_per_item(answers: Answers) -> np.ndarray:
    return np.asarray(answers["loss"], dtype=np.float64) / np.maximum(np.asarray(answers["items"]), 1)


def _unequal(a: Any, b: Any) -> float:
    first, second = np.atleast_1d(np.asarray(a)), np.atleast_1d(np.asarray(b))
    if first.shape != second.shape:
        return 1.0
    return float((first != second).mean()) if first.size else 0.0
