"""Metrics of extracted answers, by the definition of SQuAD's official scripts (Rajpurkar et al. 2016, 2018)."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from math import nan

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(text: str) -> str:
    """Make lower case, leave out punctuation and then articles, and put single blanks between words."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, prediction: str) -> float:
    """Return 1 if both are the same text, normalised."""
    return float(normalise(answer) == normalise(prediction))


def word_f1(answer: str, prediction: str) -> float:
    """Return the F1 of their words, as bags; without words on either side, whether both have none."""
    true, predicted = normalise(answer).split(), normalise(prediction).split()
    if not true or not predicted:
        return float(true == predicted)
    common = sum((Counter(true) & Counter(predicted)).values())
    return 2 * common / (len(true) + len(predicted))


def best_of(answers: Sequence[str], prediction: str) -> tuple[float, float]:
    """Return exact match and F1 with the answer that each fits best.

    Args:
        answers: What is right; none, or none but articles and punctuation: there is no answer.
        prediction: An empty text says that there is no answer.
    """
    real = [answer for answer in answers if normalise(answer)] or [""]
    return max(exact_match(a, prediction) for a in real), max(word_f1(a, prediction) for a in real)


def reading_metrics(exact: Sequence[float], f1: Sequence[float]) -> dict[str, float]:
    """Return the mean F1 and exact match of questions, from `best_of`; NaN without any."""
    return {"f1": _mean(f1), "exact": _mean(exact)}


def best_threshold(f1: Sequence[float], margins: Sequence[float], answerable: Sequence[bool]) -> tuple[float, float]:
    """Find the threshold that gives the highest F1 where a question counts as unanswerable above it.

    Args:
        f1: Of each question's best span, whatever the model thinks of it.
        margins: Score of "no answer" less the score of that span.
        answerable: Whether the question has an answer.

    Returns:
        F1 of all questions, and the threshold: the largest margin of a question that is to be answered, or the
        smallest margin of all less one if none is.
    """
    order = sorted(range(len(margins)), key=margins.__getitem__)
    total = best = float(sum(not is_so for is_so in answerable))
    threshold = margins[order[0]] - 1
    for place, index in enumerate(order):
        total += f1[index] if answerable[index] else -1.0
        last_of_its_margin = place + 1 == len(order) or margins[order[place + 1]] > margins[index]
        if last_of_its_margin and total > best:
            best, threshold = total, margins[index]
    return best / len(order), threshold


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else nan
