"""What a comparison comes to, in a sentence or two about the last model of the chain."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distillkit.reporting import numbers

SIGNIFICANT = 0.05
UNCOMPRESSED = "uncompressed"  # the baseline of `compress`: the model that it started from


def verdict(comparison: Mapping[str, Any]) -> list[str]:
    """Say what the last model keeps, saves and gains over training without a teacher; nothing about a single model."""
    models, teacher = comparison["models"], comparison["teacher"]
    name, model = list(models.items())[-1]
    if name == teacher or model["kept"] is None:
        return []
    reference = models[teacher]
    parts = [f"keeps {numbers.percent(model['kept'])} of {teacher}’s quality"]
    smaller = _factor(reference["bytes"], model["bytes"], "smaller", "larger")
    if smaller is not None:
        sizes = [numbers.megabytes(m["bytes"]) for m in (model, reference)]
        parts.append(f"takes {sizes[0]} instead of {sizes[1]}{smaller}")
    faster = _factor(reference["latency_ms"], model["latency_ms"], "faster", "slower")
    if faster is not None:
        times = [numbers.milliseconds(m["latency_ms"]) for m in (model, reference)]
        parts.append(f"answers one row in {times[0]} instead of {times[1]}{faster}")
    sentences = [f"{name} {_joined(parts)}."]
    tested = model["against"].get(comparison["baseline"])
    if tested is not None:
        sentences.append(_gain(comparison, tested))
    return sentences


def _gain(comparison: Mapping[str, Any], tested: Mapping[str, Any]) -> str:
    baseline, quality = comparison["baseline"], comparison["quality"]
    value = numbers.metric_difference(quality, tested["value"])
    p = numbers.p_value(tested["p"]).replace("< ", "<\u202f")
    what = f"{numbers.title(quality)} {value}, p {p if p.startswith('<') else '= ' + p}"
    if tested["p"] >= SIGNIFICANT:
        return f"Whether it differs from {baseline} these examples cannot tell ({what})."
    better = (tested["value"] > 0) == comparison["higher_is_better"]
    who = baseline if baseline == UNCOMPRESSED else f"{baseline}, which had no teacher"
    return f"It is {'better' if better else 'worse'} than {who} ({what})."


def _factor(before: float | None, after: float | None, less: str, more: str) -> str | None:
    """Write how many times less or more; nothing where it is about the same, None where it is unknown."""
    if not before or not after:
        return None
    factor, word = (before / after, less) if after <= before else (after / before, more)
    return "" if factor < 1.05 else f" ({factor:.{0 if factor >= 10 else 1}f}× {word})"


def _joined(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
