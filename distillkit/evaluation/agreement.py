"""How alike two models answer: equal predictions, correlation, and the divergence of their probabilities."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from distillkit.losses.divergences import ForwardKL
from distillkit.tasks.base import Answers

SUM_TOLERANCE = 1e-3  # by which the probabilities of one item may miss 1, half precision included
TINY = float(np.finfo(np.float32).tiny)


def agreement(one: Answers, other: Answers) -> float:
    """Return the share of equal predictions of two models on the same rows, over all numbers where a row has several.

    Where lists have different lengths, what one of them lacks differs.
    """
    equal = [_equal(a, b) for a, b in zip(one["prediction"], other["prediction"], strict=True)]
    return float(np.concatenate(equal).mean())


def correlation(one: Answers, other: Answers) -> float:
    """Return Pearson's correlation of the predictions of two models; NaN if one of them is constant."""
    first, second = (np.concatenate([np.ravel(a) for a in answers["prediction"]]) for answers in (one, other))
    if first.std() == 0 or second.std() == 0:
        return float("nan")
    return float(np.corrcoef(first, second)[0, 1])


def continuous(answers: Answers) -> bool:
    """Tell whether predictions are real numbers, which are hardly ever equal."""
    return all(np.asarray(value).dtype.kind == "f" for value in answers["prediction"])


def item_probabilities(answers: Answers) -> np.ndarray | None:
    """Return the probabilities of all items, `[items, classes]`; None unless those of each item sum to one."""
    found = [np.atleast_2d(np.asarray(value, dtype=np.float64)) for value in answers.get("probabilities", [])]
    if not found or any(value.ndim != 2 or value.shape[1] < 2 for value in found):
        return None
    if len({value.shape[1] for value in found}) > 1:
        return None
    rows = np.concatenate(found)
    return rows if len(rows) and bool((np.abs(rows.sum(axis=1) - 1) < SUM_TOLERANCE).all()) else None


def divergence(student: np.ndarray, teacher: np.ndarray) -> float:
    """Return the mean KL(teacher ‖ student) in nats an item, from probabilities `[items, classes]`."""
    log_q, log_p = (torch.from_numpy(np.log(np.maximum(p, TINY))) for p in (student, teacher))
    return float(ForwardKL().per_item(log_q, log_p, torch.zeros(0)).mean())


def _equal(a: Any, b: Any) -> np.ndarray:
    first, second = np.atleast_1d(np.asarray(a)), np.atleast_1d(np.asarray(b))
    shared = min(len(first), len(second))
    equal = np.zeros(max(len(first), len(second)), dtype=bool)
    equal[:shared] = first[:shared] == second[:shared]
    return equal
