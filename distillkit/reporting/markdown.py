"""A comparison as Markdown: tables, what they mean, examples and samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distillkit.reporting import numbers
from distillkit.reporting.comparison import cost_grid, heading, notes, quality_grid
from distillkit.reporting.files import markdown_table

SHOWN = 3  # examples of each model


def comparison_markdown(comparison: Mapping[str, Any]) -> str:
    """Write what report.md says about a comparison."""
    quality, cost = quality_grid(comparison), cost_grid(comparison)
    cautions = [
        f"- {name}: {m['notes']['caution']}" for name, m in comparison["models"].items() if "caution" in m["notes"]
    ]
    parts = [
        f"## {heading(comparison)}",
        markdown_table(quality.titles, quality.rows),
        markdown_table(cost.titles, cost.rows),
        "\n".join(f"- {what}: {meaning}." for what, meaning in notes(comparison)),
        "\n".join(cautions),
        _differences(comparison),
        _samples(comparison),
    ]
    return "\n\n".join(part for part in parts if part)


def _differences(comparison: Mapping[str, Any]) -> str:
    found = [part for name, examples in comparison["differences"].items() if (part := _of_model(name, examples))]
    return "\n\n".join([f"### Most different from {comparison['teacher']}", *found]) if found else ""


def _of_model(name: str, examples: list[dict[str, Any]]) -> str:
    lines = []
    for example in examples[:SHOWN]:
        inputs = " / ".join(_line(value) for value in example["inputs"].values())
        label = "" if example["label"] is None else f"; label {_line(example['label'])}"
        lines.append(f"- {inputs}  \n  {_said(name, example['model'])}; {_said('teacher', example['teacher'])}{label}")
    return f"**{name}**\n\n" + "\n".join(lines) if lines else ""


def _said(who: str, said: Mapping[str, Any]) -> str:
    parts = [_line(said["prediction"])] if "prediction" in said else []
    if "confidence" in said:
        parts.append(f"({numbers.percent(said['confidence'])})")
    elif "loss" in said:
        parts.append(f"loss {numbers.number(said['loss'], 3)}")
    return " ".join([who, *parts])


def _samples(comparison: Mapping[str, Any]) -> str:
    parts = []
    for sample in comparison["samples"]:
        lines = [f"- **{name}** {_code(text)}" for name, text in sample["continuations"].items()]
        parts.append("\n".join([f"{_code(sample['prompt'])} …", "", *lines]))
    return "\n\n".join(["### Samples", *parts]) if parts else ""


def _line(value: Any) -> str:
    """Write a value on one line, so that it cannot be taken for Markdown or HTML."""
    text = numbers.shown(value)
    return _code(text) if text else "–"


def _code(text: str) -> str:
    text = " ".join(text.split())
    fence = "``" if "`" in text else "`"
    return f"{fence} {text} {fence}" if fence == "``" else f"`{text}`"
