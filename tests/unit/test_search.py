"""Grids of variants: which share their beginning, which no other dominates, and which keeps a budget."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from distillkit.commands import compress
from distillkit.commands.reloading import check_in_fresh_process, remember
from distillkit.compression.budget import check_budget, choose, front
from distillkit.compression.grid import expand, paths
from distillkit.errors import CheckFailed, UserError
from distillkit.errors import report as exit_code
from distillkit.models.live import LiveModel
from distillkit.schema import Budget, Config
from distillkit.tasks.causal_lm import CausalLM
from tests.compressing import STEPS, batch, command, family
from tests.reports import comparison, model
from tests.tiny import llama, tokenizer

FFN = {"_target_": "distillkit.compression.ffn.NarrowFFN", "keep": 0.5}
VOCABULARY = {"_target_": "distillkit.compression.vocabulary.TrimVocabulary"}
HEADS = {"_target_": "distillkit.compression.heads.DropHeads", "keep": 1}
LAYERS = {"_target_": "distillkit.compression.depth.DropLayers", "keep": 1}


def names(steps: dict, grid: dict) -> list[list[str]]:
    return [[branch.name for branch in path] for path in paths(expand(steps, grid))]


def test_without_a_grid_there_is_one_chain():
    assert names({"a": {}, "b": None, "c": {}}, {}) == [["a", "c"]]


def test_a_grid_makes_every_combination_and_shares_what_is_alike():
    grid = {"b": {"x": [1, 2]}, "c": [True, False]}
    assert names({"a": {}, "b": {"x": 0}, "c": {}}, grid) == [
        ["a", "a-b-1", "a-b-1-c"],
        ["a", "a-b-2", "a-b-2-c"],
    ]
    made = expand({"b": {"x": 0, "y": 3}}, {"b": {"x": [1, 2]}})
    nodes = {branch.name: branch.node for branch in made}
    assert nodes == {"b-1": {"x": 1, "y": 3}, "b-2": {"x": 2, "y": 3}}
    assert names({"b": {}}, {"b": {"x": [[0, 2], "2:4"], "y": [None]}}) == [["b-0_2-None"], ["b-2_4-None"]]


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({"d": {"x": [1]}}, r"^compress\.grid\.d: there is no step 'd'"),
        ({"a": {"x": []}}, r"^compress\.grid\.a\.x: needs a list of values"),
        ({"a": [1, 2]}, r"^compress\.grid\.a: needs \[true, false\]"),
    ],
)
def test_bad_grids_are_refused(grid, message):
    with pytest.raises(UserError, match=message):
        expand({"a": {}}, grid)


def compared() -> dict:
    sizes = {
        "whole": (0.90, 10e6, 4.0),
        "half": (0.89, 5e6, 2.0),
        "slow": (0.885, 5e6, 3.0),  # dominated by half
        "tiny": (0.70, 1e6, 1.0),
    }
    return comparison(
        {name: model(metrics={"accuracy": q}, bytes=size, latency_ms=ms) for name, (q, size, ms) in sizes.items()}
    )


def test_the_front_holds_what_no_other_dominates():
    assert front(compared()) == ["whole", "half", "tiny"]
    lower = compared() | {"higher_is_better": False}
    assert front(lower) == ["tiny"]


@pytest.mark.parametrize(
    ("limits", "chosen"),
    [
        ({"size_mb": 6}, "half"),
        ({"max_quality_drop": 0.02}, "half"),
        ({"latency_ms": 1.5}, "tiny"),
        ({"size_mb": 6, "latency_ms": 1.5, "max_quality_drop": 0.1}, None),
    ],
)
def test_the_best_that_keeps_the_budget_is_chosen(limits, chosen):
    found = choose(Budget(**limits), compared(), "whole", ["half", "slow", "tiny"])
    assert found["chosen"] == chosen
    assert found["limits"] == limits
    if chosen is None:
        assert found["misses"]["tiny"] == ["max_quality_drop 0.2 instead of 0.1"]
        assert found["misses"]["half"] == ["latency_ms 2 instead of 1.5"]


@pytest.mark.parametrize(
    ("limits", "speed", "key"),
    [
        ({"size_mb": 0}, True, "size_mb"),
        ({"latency_ms": 1}, False, "latency_ms"),
        ({"max_quality_drop": -1}, True, "max_quality_drop"),
    ],
)
def test_budgets_that_cannot_be_kept_are_refused(limits, speed, key):
    with pytest.raises(UserError, match=rf"^compress\.budget\.{key}"):
        check_budget(Budget(**limits), speed)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    config = command(tmp_path)
    config.compress.steps = {"layers": LAYERS, "ffn": FFN, "retrain": STEPS["retrain"]}
    config.compress.grid = {"ffn": {"keep": [0.5, 0.25]}}
    return config


def test_a_search_makes_every_variant_from_the_same_start_and_chooses_one(config, tmp_path, capsys):
    config.compress.budget.max_quality_drop = 1.0
    config.compress.budget.size_mb = 10.0
    report = compress.main(config)
    variants = ["layers", "layers-ffn-0.5", "layers-ffn-0.5-retrain", "layers-ffn-0.25", "layers-ffn-0.25-retrain"]
    assert list(report["models"]) == ["uncompressed", *variants]
    assert report["budget"]["chosen"] in variants
    assert report["front"]
    compressed = tmp_path / "out" / "compressed"
    weights = {name: load_file(compressed / name / "model.safetensors") for name in variants}
    up = "bert.encoder.layer.0.intermediate.dense.weight"
    kept = [weights[f"layers-ffn-{share}"][up] for share in ("0.5", "0.25")]
    assert [len(weight) for weight in kept] == [32, 16]
    assert all(any(torch.equal(row, other) for other in weights["layers"][up]) for weight in kept for row in weight)
    assert json.loads((compressed / "chosen" / "config.json").read_text())["num_hidden_layers"] == 1
    assert f"chosen: {report['budget']['chosen']}" in capsys.readouterr().out
    page = (tmp_path / "out" / "report.html").read_text()
    assert 'class="front"' in page
    assert "the best variant that keeps it is" in page


def test_a_missed_budget_ends_with_code_3_and_leaves_the_report(config, tmp_path, capsys):
    config.compress.steps = {"layers": LAYERS}
    config.compress.grid = {}
    config.compress.budget.size_mb = 1e-3
    for _ in range(2):  # again when it is finished
        with pytest.raises(CheckFailed, match=r"^compress\.budget: no variant keeps it; layers: size_mb") as raised:
            compress.main(config)
        assert exit_code(raised.value) == 3
        assert capsys.readouterr().err.startswith("distillkit: error: compress.budget")
    assert json.loads((tmp_path / "out" / "report.json").read_text())["compress"]["budget"]["chosen"] is None


def test_other_models_are_compared_with_too_the_teacher_first(config, tmp_path):
    teacher = tmp_path / "teacher"
    shutil.copytree(tmp_path / "start", teacher)
    config.evaluate.models = {"teacher": str(teacher)}
    config.evaluate.resamples = 200
    config.compress.steps = {"layers": LAYERS, "vocabulary": VOCABULARY}
    config.compress.grid = {}
    report = compress.main(config)
    assert list(report["models"]) == ["teacher", "uncompressed", "layers", "vocabulary"]
    assert (report["teacher"], report["baseline"]) == ("teacher", "uncompressed")
    assert set(report["models"]["layers"]["against"]) == {"teacher", "uncompressed"}
    assert report["models"]["uncompressed"]["agreement"] == 1.0
    assert report["models"]["vocabulary"]["metrics"] == pytest.approx(report["models"]["layers"]["metrics"])

    config.evaluate.models = {"layers": str(teacher)}
    with pytest.raises(UserError, match=r"^evaluate\.models\.layers: a variant is called 'layers' too"):
        compress.main(config)


def test_a_language_model_with_a_trimmed_vocabulary_is_compared_token_by_token(config, tmp_path):
    live = LiveModel(llama(seed=3), tokenizer(), CausalLM(max_length=32))
    live.save(tmp_path / "lm")
    config.task = {"_target_": "distillkit.tasks.causal_lm.CausalLM", "max_length": 32}
    config.compress.model = str(tmp_path / "lm")
    config.compress.steps = {"heads": HEADS, "vocabulary": VOCABULARY}
    config.compress.grid = {}
    models = compress.main(config)["models"]
    assert models["vocabulary"]["parameters"] < models["heads"]["parameters"] < models["uncompressed"]["parameters"]
    assert models["vocabulary"]["agreement"] is not None
    assert models["heads"]["divergence"] > 0
    assert models["vocabulary"]["divergence"] is None  # over other tokens
    assert models["vocabulary"]["metrics"]["loss"] < models["heads"]["metrics"]["loss"]  # fewer tokens to choose from


def test_calibration_without_rows_is_one_line_before_anything_is_written(config, tmp_path):
    del config.dataset["train"]
    config.dataset["test"] = config.dataset["validation"]
    config.compress.steps = {"ffn": FFN}
    config.compress.grid = {}
    with pytest.raises(UserError, match="no train split"):
        compress.main(config)
    assert not (tmp_path / "out").exists()


def test_a_fresh_process_finds_the_same_and_reports_what_differs(tmp_path):
    """A whole model passes beside one whose weights were changed; one is not there."""
    live = family("bert")
    asked, written = batch(live), {}
    for name in ("whole", "changed", "missing"):
        live.save(tmp_path / name)
        written[name] = remember(live, asked, tmp_path / name)
    with torch.no_grad():
        live.model.classifier.bias.add_(1)
    live.save(tmp_path / "changed")
    with pytest.raises(CheckFailed, match=r"'changed', in a fresh process, differs by 1 in its logits"):
        check_in_fresh_process({name: written[name] for name in ("whole", "changed")})
    (tmp_path / "missing" / "config.json").unlink()
    with pytest.raises(CheckFailed, match=r"'missing' does not load in a fresh process: "):
        check_in_fresh_process({"missing": written["missing"]})
