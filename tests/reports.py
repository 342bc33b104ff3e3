"""What report.json keeps about a comparison, made by hand."""

from __future__ import annotations

from typing import Any


def model(**changes: Any) -> dict[str, Any]:
    """One model of a comparison: measured in every way, or in fewer."""
    values = {
        "path": "folder",
        "metrics": {"accuracy": 0.9, "loss": 0.25},
        "intervals": {"accuracy": [0.88, 0.92], "loss": [0.2, 0.3]},
        "kept": 1.0,
        "against": {},
        "agreement": None,
        "divergence": None,
        "calibration": None,
        "class_f1": None,
        "confusion": None,
        "parameters": 1_500_000,
        "nonzeros": 1_500_000,
        "bytes": 6_000_000,
        "memory": None,
        "process_memory": None,
        "latency_ms": None,
        "latency_p95_ms": None,
        "rows_per_second": None,
        "notes": {},
    }
    return values | changes


def comparison(models: dict[str, dict[str, Any]], **changes: Any) -> dict[str, Any]:
    """A comparison of models; the first is the teacher."""
    values = {
        "digest": "d",
        "name": "tiny",
        "task": "sequence_classification",
        "dataset": "reviews",
        "split": "validation",
        "rows": 872,
        "data": {"rows": 872, "encoded": 872, "bad": 0, "left_out": 0, "truncated": 0},
        "quality": "accuracy",
        "higher_is_better": True,
        "teacher": next(iter(models)),
        "baseline": None,
        "resampling": {"count": 1000, "seed": 0},
        "agreement_of": "share of equal predictions",
        "memory_of": "what a process grew by",
        "classes": None,
        "environment": {"distillkit": "0", "python": "3", "torch": "2", "device": "CPU", "time": "2026-01-02T03:04:05"},
        "models": models,
        "differences": {},
        "samples": [],
    }
    return values | changes


def calibrated(error: float) -> dict[str, Any]:
    counts = [0] * 13 + [5, 15]
    confidence: list[float | None] = [None] * 13
    return {
        "error": error,
        "counts": counts,
        "confidence": [*confidence, 0.9, 0.97],
        "accuracy": [*confidence, 0.8, 1.0],
    }


def whole() -> dict[str, Any]:
    """A comparison with everything in it, and texts that must not become markup."""
    evil = "<script>alert('x')</script> & \"so\""
    timed = {"latency_p95_ms": 15.0, "rows_per_second": {"8": 700.0, "32": 1234.5}, "memory": 90_000_000}
    tested = {"teacher": {"value": -0.02, "low": -0.03, "high": -0.01, "p": 0.002}}
    models = {
        "teacher": model(
            path="run/teacher/model",
            latency_ms=12.34,
            calibration=calibrated(0.02),
            class_f1=[0.9, 0.8],
            confusion=[[9, 1], [2, 8]],
            **timed,
        ),
        "alone": model(
            path="run/alone/model",
            metrics={"accuracy": 0.8, "loss": 0.5},
            kept=0.8889,
            agreement=0.75,
            divergence=0.31,
            calibration=calibrated(0.1),
            class_f1=[0.8, 0.7],
            confusion=[[8, 2], [3, 7]],
            latency_ms=6.0,
            bytes=3_000_000,
            against=tested,
            **timed,
        ),
        "int8": model(
            path="run/compress/compressed/int8",
            metrics={"accuracy": 0.88, "loss": 0.3},
            kept=0.9778,
            agreement=0.95,
            divergence=0.02,
            calibration=calibrated(0.03),
            class_f1=[0.88, None],
            confusion=[[9, 1], [3, 7]],
            nonzeros=700_000,
            latency_ms=0.5,
            bytes=1_500_000,
            against=tested | {"alone": {"value": 0.08, "low": 0.05, "high": 0.11, "p": 0.002}},
            notes={"caution": f"slow {evil}"},
            **timed,
        ),
    }
    difference = {
        "row": 3,
        "inputs": {"text": evil, "text_pair": "two\nlines"},
        "label": "good",
        "teacher": {"prediction": "good", "confidence": 0.9, "loss": 0.1},
        "model": {"prediction": evil, "confidence": 0.8, "loss": 1.1},
        "measure": "difference of probabilities",
        "difference": 0.7,
    }
    return comparison(
        models,
        baseline="alone",
        classes=["good", evil],
        differences={"alone": [], "int8": [difference]},
        samples=[{"prompt": f"Once {evil}", "continuations": {"teacher": "upon", "int8": evil}}],
    )
