"""From start and end logits to answers: the best spans of a window, and of all windows of a row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from distillkit.metrics.reading import best_of
from distillkit.signals import ABSENT
from distillkit.tasks.base import Answers

Span = tuple[float, int, int, str]  # score, where it begins and ends in the context, and what stands there


def best_spans(
    start: Tensor, end: Tensor, extras: Mapping[str, list[Any]], max_answer: int, n_best: int
) -> list[list[Span]]:
    """Find the spans of each window with the highest start + end, the best first.

    Args:
        start: Logits `[windows, length]`, `ABSENT` where no answer may start.
        end: Likewise.
        extras: Of the windows, from `distillkit.tasks.windows`.
        max_answer: Tokens of a span.
        n_best: Spans of a window, if there are so many.
    """
    null = torch.tensor(extras["null"], device=start.device).unsqueeze(1)
    start, end = (logits.scatter(1, null, ABSENT) for logits in (start, end))
    ends = functional.pad(end, (0, max_answer - 1), value=ABSENT).unfold(1, max_answer, 1)
    scores = (start.unsqueeze(2) + ends).flatten(1)  # [windows, length · max_answer]
    best, index = scores.topk(min(n_best, scores.shape[1]), dim=1)
    found = []
    for window, (values, places) in enumerate(zip(best.tolist(), index.tolist(), strict=True)):
        row = {name: values[window] for name, values in extras.items()}
        pairs = zip(values, places, strict=True)
        spans = [_span(score, place // max_answer, place % max_answer, row) for score, place in pairs]
        found.append([span for span in spans if span is not None])
    return found


def _span(score: float, start: int, more: int, row: Mapping[str, Any]) -> Span | None:
    """Read a span of `more` + 1 tokens off the text; None if there is nothing or no answer may be there."""
    if score < ABSENT / 2:
        return None
    begin, end = row["starts"][start - row["first"]], row["ends"][start + more - row["first"]]
    return (score, row["base"] + begin, row["base"] + end, row["text"][begin:end]) if end > begin else None


def join_windows(answers: Answers, null_threshold: float | None) -> Answers:
    """Answer each row from all of its windows.

    The same span in two windows counts once, with its higher score; "not here" counts with its lowest, since an answer
    in one window is an answer.

    Args:
        answers: Of windows: "row", "spans", "null", "answers", "loss", "items".
        null_threshold: There is no answer where "not here" scores higher than the best span by more than this;
            None: there is always one.

    Returns:
        The same columns of rows; the "prediction", its "exact" match and "f1" (NaN where nothing is known to be right);
        of the best span, whatever the threshold, the F1 ("span_f1"), and by how much "not here" exceeds it ("margin").
    """
    windows: dict[int, list[int]] = {}
    for index, row in enumerate(answers["row"]):
        windows.setdefault(row, []).append(index)
    joined = []
    for row, mine in windows.items():
        spans = _distinct([span for index in mine for span in answers["spans"][index]])
        null, right = min(answers["null"][index] for index in mine), answers["answers"][mine[0]]
        score, text = (spans[0][0], spans[0][3]) if spans else (ABSENT, "")
        prediction = "" if null_threshold is not None and null - score > null_threshold else text
        exact, f1 = (torch.nan, torch.nan) if right is None else best_of(right, prediction)
        joined.append(
            {
                "row": row,
                "spans": spans,
                "null": null,
                "answers": right,
                "loss": sum(answers["loss"][index] for index in mine),
                "items": sum(answers["items"][index] for index in mine),
                "prediction": prediction,
                "exact": exact,
                "f1": f1,
                "span_f1": torch.nan if right is None else best_of(right, text)[1],
                "margin": null - score,
            }
        )
    return {name: [row[name] for row in joined] for name in joined[0]}


def _distinct(spans: list[Span]) -> list[Span]:
    """Put spans in order, the best first, each place once."""
    found: dict[tuple[int, int], Span] = {}
    for span in sorted(spans, reverse=True):
        found.setdefault(span[1:3], span)
    return list(found.values())
