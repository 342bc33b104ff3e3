"""A `compress` that was ended goes on behind the variants that are whole; a finished one says again what failed."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from distillkit.commands import compress, run
from distillkit.compression.depth import DropLayers
from distillkit.compression.prune import MagnitudePrune
from distillkit.compression.retrain import Retrain
from distillkit.errors import CheckFailed
from distillkit.freeze import StageJob
from distillkit.models.live import LiveModel
from distillkit.schema import Config
from tests.compressing import STEPS, command

LAYERS = {"_target_": "distillkit.compression.depth.DropLayers", "keep": [0]}
NAMES = ["layers", "prune", "retrain", "second"]
MATRIX = "bert.encoder.layer.0.intermediate.dense.weight"


class Stopped(Exception):
    """Stands for the end of a process."""


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """A chain whose model has more zeros than are pruned: zeros alone do not tell which weights are held."""
    config = command(tmp_path)
    config.evaluate.resamples = 0
    config.compress.steps = {
        **{"layers": LAYERS, "prune": STEPS["prune"], "retrain": STEPS["retrain"]},
        "second": {**STEPS["prune"], "sparsity": 0.9},
    }
    path = tmp_path / "start" / "model.safetensors"
    tensors = load_file(path)
    tensors[MATRIX][:48] = 0
    save_file(tensors, path, {"format": "pt"})
    return config


@pytest.fixture
def worked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note down which steps work."""
    done: list[str] = []
    for kind in (DropLayers, MagnitudePrune, Retrain):

        def watched(self, variant, context, call=kind.__call__):
            done.append(context.folder.name)
            return call(self, variant, context)

        monkeypatch.setattr(kind, "__call__", watched)
    return done


def stop_at(name: str, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run until a variant is to be written."""
    save = LiveModel.save

    def stop(model: LiveModel, folder: Path, card: str | None = None) -> None:
        if folder.name == name:
            raise Stopped
        save(model, folder, card)

    with monkeypatch.context() as patch:
        patch.setattr(LiveModel, "save", stop)
        with pytest.raises(Stopped):
            compress.main(config)


def files(folder: str) -> dict[str, bytes]:
    return {name: (Path(folder) / "compressed" / name / "model.safetensors").read_bytes() for name in NAMES}


@pytest.mark.parametrize("at", ["retrain", "second"])
def test_whole_variants_are_kept_and_the_rest_comes_out_the_same(at, config, worked, monkeypatch, tmp_path):
    whole = copy.deepcopy(config)
    whole.output_dir = str(tmp_path / "whole")
    expected = compress.main(whole)["models"]
    stop_at(at, config, monkeypatch)
    compressed = tmp_path / "out" / "compressed"
    kept = {path: path.stat().st_mtime_ns for path in compressed.glob("*/model.safetensors")}
    worked.clear()
    found = compress.main(config)["models"]
    assert worked == NAMES[NAMES.index(at) :]
    assert len(kept) == NAMES.index(at)
    assert all(path.stat().st_mtime_ns == written for path, written in kept.items())
    assert files(config.output_dir) == files(whole.output_dir)
    for name, entry in expected.items():
        assert found[name]["notes"] == entry["notes"]
        assert found[name]["metrics"] == entry["metrics"]
    assert not list(compressed.glob(".*"))
    trained = load_file(compressed / "retrain" / "model.safetensors")[MATRIX]
    assert ((load_file(compressed / "prune" / "model.safetensors")[MATRIX] == 0) & (trained != 0)).any()


@pytest.mark.parametrize("change", ["damaged", "other start", "never"])
def test_what_is_not_sure_is_made_again(change, config, worked, monkeypatch, tmp_path):
    config.compress.steps = {name: config.compress.steps[name] for name in NAMES[:3]}
    stop_at("retrain", config, monkeypatch)
    if change == "damaged":
        path = tmp_path / "out" / "compressed" / "prune" / "config.json"
        path.write_text(path.read_text() + "\n")
    elif change == "other start":
        path = tmp_path / "start" / "model.safetensors"
        save_file({name: tensor * 1.01 for name, tensor in load_file(path).items()}, path, {"format": "pt"})
    else:
        config.resume = "never"
    worked.clear()
    compress.main(config)
    assert worked == (["prune", "retrain"] if change == "damaged" else ["layers", "prune", "retrain"])


def test_a_finished_stage_says_again_that_no_variant_keeps_the_budget(config, tmp_path, capsys):
    config.compress.steps = {"layers": LAYERS}
    config.compress.budget.size_mb = 1e-3
    whole = copy.deepcopy(config)
    whole.output_dir = str(tmp_path)
    stages = {"small": StageJob("small", "compress", config)}
    lines = []
    for _ in range(2):
        with pytest.raises(CheckFailed, match=r"^compress\.budget: no variant keeps it; layers: size_mb") as raised:
            run.main(whole, stages)
        lines.append(str(raised.value))
    assert lines[0] == lines[1]
    assert "finished, skipped" not in capsys.readouterr().out


def test_a_finished_stage_copies_the_choice_that_it_could_not_copy(config, worked, tmp_path, capsys):
    config.compress.steps = {"layers": LAYERS}
    config.compress.budget.size_mb = 100.0
    whole = copy.deepcopy(config)
    whole.output_dir = str(tmp_path)
    stages = {"small": StageJob("small", "compress", config)}
    run.main(whole, stages)
    chosen = tmp_path / "out" / "compressed" / "chosen"
    shutil.rmtree(chosen)
    for _ in range(2):
        run.main(whole, stages)
    assert (chosen / "model.safetensors").is_file()
    assert worked == ["layers"]
    assert capsys.readouterr().out.count("finished, skipped") == 1
