"""The model card names teacher, data, losses and results, and its header is YAML."""

from __future__ import annotations

from typing import Any

import yaml

from distillkit.reporting.card import model_card

REPORT: dict[str, Any] = {
    "name": "sst2: distil",
    "task": "sequence_classification",
    "teacher": "outputs/teacher/model",
    "student": "FromTeacher",
    "made_from": "outputs/teacher/model",
    "dataset": "nyu-mll/glue sst2",
    "architecture": "BertForSequenceClassification",
    "parameters": 1_234_567,
    "loss": {"hard": "0.5 × CrossEntropy", "kd": "0.5 × ForwardKL"},
    "steps": 1000,
    "batch_size": 32,
    "learning_rate": 5e-5,
    "seed": 42,
    "metrics": {"accuracy": 0.91234, "loss": 0.3},
}


def header(card: str) -> dict:
    _, text, _ = card.split("---\n", 2)
    return yaml.safe_load(text)


def test_a_distilled_student():
    card = model_card(REPORT)
    assert header(card)["pipeline_tag"] == "text-classification"
    assert header(card)["library_name"] == "transformers"
    assert "knowledge-distillation" in header(card)["tags"]
    for fact in (
        "# sst2: distil",
        "`outputs/teacher/model`",
        "nyu-mll/glue sst2",
        "hard: 0.5 × CrossEntropy; kd: 0.5 × ForwardKL",
        "1,234,567",
        "1,000 of 32 rows",
        "5e-05",
        "| accuracy | 0.9123 |",
    ):
        assert fact in card


def test_a_model_without_a_teacher():
    card = model_card({**REPORT, "teacher": None, "metrics": {}, "task": "causal_lm"})
    assert "without a teacher" in card
    assert "knowledge-distillation" not in card
    assert "Results" not in card
    assert header(card)["pipeline_tag"] == "text-generation"
