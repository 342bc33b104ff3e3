"""The model card of a trained student."""

from __future__ import annotations

from typing import Any

import yaml

from distillkit import __version__

LIBRARY_TASKS = {
    "sequence_classification": "text-classification",
    "multi_label_classification": "text-classification",
    "regression": "text-classification",
    "token_classification": "token-classification",
    "question_answering": "question-answering",
    "causal_lm": "text-generation",
}


def made(report: dict[str, Any]) -> str:
    """Say how a student was made before it was trained."""
    return f"{report['student']} ({report['made_from']})" if report["made_from"] else report["student"]


def model_card(report: dict[str, Any]) -> str:
    """Write a README.md from the report of `train`: teacher, data, losses and results."""
    header = {
        "library_name": "transformers",
        "pipeline_tag": LIBRARY_TASKS.get(report["task"]),
        "tags": ["distillkit", "knowledge-distillation"] if report["teacher"] else ["distillkit"],
    }
    how = f"Distilled from the teacher `{report['teacher']}`." if report["teacher"] else "Trained without a teacher."
    facts = {
        "Architecture": f"{report['architecture']}, {report['parameters']:,} parameters",
        "Teacher": report["teacher"] or "none",
        "Student": made(report),
        "Data": report["dataset"],
        "Loss": "; ".join(f"{name}: {text}" for name, text in report["loss"].items()),
        "Steps": f"{report['steps']:,} of {report['batch_size']} rows",
        "Learning rate": f"{report['learning_rate']:g}",
        "Seed": str(report["seed"]),
    }
    results = "\n".join(f"| {name} | {value:.4f} |" for name, value in report["metrics"].items())
    parts = [
        f"---\n{yaml.safe_dump({k: v for k, v in header.items() if v}, sort_keys=False)}---",
        f"# {report['name']}",
        f"{how} Made with distillkit {__version__}; loads in plain transformers.",
        "\n".join(f"- **{name}**: {value}" for name, value in facts.items()),
        f"## Results on validation\n\n| metric | value |\n| --- | ---: |\n{results}" if results else "",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"
