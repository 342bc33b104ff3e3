"""The compress command: a whole chain on a tiny model, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from distillkit.commands import compress
from distillkit.errors import CheckFailed, UserError
from distillkit.models.live import LiveModel
from distillkit.models.onnx import OnnxModel
from distillkit.schema import Config
from distillkit.tasks.sequence_classification import SequenceClassification
from tests.compressing import STEPS, command


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return command(tmp_path)


def test_a_chain_writes_variants_that_load_and_whose_zeros_stay(config, tmp_path):
    report = compress.main(config)

    compressed = tmp_path / "out" / "compressed"
    assert list(report["models"]) == ["uncompressed", "prune", "retrain", "int8"]
    assert sorted(path.name for path in compressed.iterdir()) == [
        *("differences.jsonl", "int8", "prune", "retrain", "retrain.metrics.jsonl")
    ]
    pruned, retrained = [load_file(compressed / name / "model.safetensors") for name in ("prune", "retrain")]
    zeros = {name: weight == 0 for name, weight in pruned.items() if ".layer." in name and weight.dim() == 2}
    assert sum(int(zero.sum()) for zero in zeros.values()) > 0
    assert all(not retrained[name][zero].any() for name, zero in zeros.items())
    assert any(not torch.equal(retrained[name], pruned[name]) for name in zeros)
    plain, info = AutoModelForSequenceClassification.from_pretrained(compressed / "retrain", output_loading_info=True)
    assert plain.config.id2label == {0: "bad", 1: "good"}
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    OnnxModel.load(compressed / "int8", SequenceClassification(max_length=32))

    models = report["models"]
    assert models["prune"]["notes"]["sparsity"] == pytest.approx(0.5, abs=1e-3)
    assert (
        models["prune"]["nonzeros"]
        < models["uncompressed"]["nonzeros"]
        == pytest.approx(models["prune"]["parameters"], rel=0.05)
    )
    assert models["int8"]["bytes"] < models["uncompressed"]["bytes"]
    assert all("accuracy" in model["metrics"] for model in models.values())
    assert json.loads((tmp_path / "out" / "report.json").read_text())["compress"]["models"] == models
    assert "neither size nor speed" in (tmp_path / "out" / "report.md").read_text()


def test_a_finished_run_is_not_repeated(config, tmp_path):
    config.compress.steps = {"prune": STEPS["prune"]}
    first = compress.main(config)
    weights = tmp_path / "out" / "compressed" / "prune" / "model.safetensors"
    written = weights.stat().st_mtime_ns
    assert compress.main(config)["digest"] == first["digest"]
    assert weights.stat().st_mtime_ns == written


def step(name: str, **arguments) -> dict:
    return {name: {**STEPS[name], **arguments}}


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ({}, r"^compress\.steps: there are no steps"),
        (step("prune", sparsity=2.0), r"^compress\.steps\.prune.*sparsity.*2"),
        (step("prune", exclude=["*.layer.9.*"]), r"^compress\.steps\.prune: exclude: .*layer\.9"),
        (step("int8", exclude=["*.layer.9.*"]), r"^compress\.steps\.int8: exclude: .*layer\.9"),
        (step("int8") | step("prune"), r"^compress\.steps\.prune: .*int8"),
        (step("retrain", train={"max_stps": 3}), r"^compress\.steps\.retrain.*max_stps.*max_steps"),
        (step("retrain", train={"max_steps": -3}), r"^compress\.steps\.retrain.*max_steps"),
        ({"a/b": STEPS["prune"]}, r"^compress\.steps: .*a/b"),
    ],
)
def test_what_cannot_work_is_refused_and_nothing_is_written(config, tmp_path, steps, message):
    config.compress.steps = steps
    with pytest.raises(UserError, match=message):
        compress.main(config)
    assert not (tmp_path / "out").exists()


def test_without_a_teacher_the_model_to_start_from_teaches(config):
    config.teacher = {"_target_": None}
    assert compress.make_plan(config).teacher.path == config.compress.model


def test_a_variant_that_loads_otherwise_than_it_was_written_is_an_error(config, monkeypatch):
    save = LiveModel.save

    def save_something_else(model: LiveModel, folder: Path, card: str | None = None) -> None:
        with torch.no_grad():
            model.model.classifier.bias.add_(1)
        save(model, folder, card)
        with torch.no_grad():
            model.model.classifier.bias.sub_(1)

    monkeypatch.setattr(LiveModel, "save", save_something_else)
    config.compress.steps = {"prune": STEPS["prune"]}
    with pytest.raises(CheckFailed, match="loaded again"):
        compress.main(config)
