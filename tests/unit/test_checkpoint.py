"""Checkpoints: exact, whole or not at all, and never those of another run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from distillkit.data.sealed import checksum, unsealed
from distillkit.errors import UserError
from distillkit.training import checkpoint
from distillkit.training.checkpoint import (
    Progress,
    check_resumable,
    load_checkpoint,
    newest_checkpoint,
)
from distillkit.training.loop import fit
from distillkit.training.stopping import Patience
from distillkit.training.writer import Writer
from tests.tiny import accelerator, classifier, encoded, training

FILES = ["manifest.json", "optimizer.safetensors", "process-0.safetensors", "state.json", "weights.safetensors"]


class Tied(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.Linear(3, 3)
        self.head = torch.nn.Linear(3, 3, bias=False)
        self.head.weight = self.body.weight


def make(seed: int = 0) -> tuple[Tied, torch.optim.AdamW]:
    torch.manual_seed(seed)
    module = Tied()
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1, fused=True)
    for _ in range(2):
        module.head(module.body(torch.randn(4, 3))).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return module, optimizer


def save(folder: Path, step: int, keep: int = 2, seed: int = 0, background: bool = False) -> Path:
    module, optimizer = make(seed)
    progress = Progress(step, torch.tensor([0.1, 0.7]), torch.tensor([3.0, 1e9 + 1], dtype=torch.float64), 2, 0.875)
    progress.patience = Patience(waited=3, mark=0.75)
    writer = Writer(folder, accelerator(), keep, background)
    path = writer.save(module, optimizer, progress, "this run")
    if background:
        for tensor in (*module.parameters(), progress.window_sums):
            tensor.data.zero_()  # training goes on
    writer.wait()
    return path


def steps(folder: Path) -> list[int]:
    return [checkpoint.step_of(path) for path in checkpoint.checkpoints(folder)]


@pytest.mark.parametrize("background", [False, True])
def test_everything_comes_back_to_the_last_bit(tmp_path, background):
    path = save(tmp_path, 7, background=background)
    assert path == tmp_path / "step-000007"
    assert sorted(file.name for file in path.iterdir()) == FILES
    drawn = torch.randn(5)
    module, optimizer = make(seed=1)
    progress = load_checkpoint(path, module, optimizer, accelerator(), torch.device("cpu"))
    assert torch.equal(torch.randn(5), drawn)
    expected, their_optimizer = make(seed=0)
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), expected.parameters(), strict=True))
    assert module.head.weight is module.body.weight
    ours, theirs = optimizer.state_dict(), their_optimizer.state_dict()
    assert json.dumps(ours["param_groups"]) == json.dumps(theirs["param_groups"])
    for index, state in theirs["state"].items():
        assert all(torch.equal(ours["state"][index][name], value) for name, value in state.items())
    assert (progress.step, progress.best_step, progress.best_value) == (7, 2, 0.875)
    assert progress.patience == Patience(waited=3, mark=0.75)
    assert progress.window_sums.tolist() == torch.tensor([0.1, 0.7]).tolist()
    assert progress.window_counts.tolist() == [3.0, 1e9 + 1]


def test_an_optimizer_may_keep_numbers_and_tensors_that_weights_share(tmp_path):
    """As bitsandbytes does: a table of 256 values that all weights look into, and steps as whole numbers."""
    module, optimizer = make()
    table = torch.linspace(-1, 1, 256)
    for parameter in module.parameters():
        optimizer.state[parameter] |= {"table": table, "number": 7}
    path = Writer(tmp_path, accelerator(), 2).save(
        module, optimizer, Progress(3, torch.zeros(1), torch.zeros(1)), "this run"
    )
    other, theirs = make(seed=1)
    load_checkpoint(path, other, theirs, accelerator(), torch.device("cpu"))
    for parameter in other.parameters():
        assert theirs.state[parameter]["number"] == 7
        assert isinstance(theirs.state[parameter]["number"], int)
        assert torch.equal(theirs.state[parameter]["table"], table)


def test_the_newest_are_kept(tmp_path):
    for step in (3, 6, 9, 12):
        save(tmp_path, step, keep=2)
    assert steps(tmp_path) == [9, 12]
    assert newest_checkpoint(tmp_path) == (tmp_path / "step-000012", [])


def test_folders_of_other_names_are_no_checkpoints(tmp_path):
    save(tmp_path, 3)
    for name in ("step-000006-mine", "step-last", "steps"):
        shutil.copytree(tmp_path / "step-000003", tmp_path / name)
    assert newest_checkpoint(tmp_path) == (tmp_path / "step-000003", [])


def test_more_than_six_digits_stay_in_order(tmp_path):
    for step in (999_999, 1_000_000):
        save(tmp_path, step, keep=1)
    assert steps(tmp_path) == [1_000_000]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, Path.unlink], ids=["truncated", "bit flipped", "missing"])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_checkpoint_is_passed_over_and_its_file_named(tmp_path, damage: Callable[[Path], None], name):
    save(tmp_path, 3)
    save(tmp_path, 6)
    damage(tmp_path / "step-000006" / name)
    path, skipped = newest_checkpoint(tmp_path)
    assert path == tmp_path / "step-000003"
    assert len(skipped) == 1
    assert skipped[0].startswith("step-000006 skipped: ")
    if name != "manifest.json" or damage is not flip_a_bit:
        assert name in skipped[0]
    with pytest.raises(UserError, match=r"resume: checkpoint .*step-000006 cannot be used"):
        check_resumable(tmp_path / "step-000006", "this run")


def test_every_bit_of_a_manifest_counts(tmp_path):
    path = save(tmp_path, 3) / "manifest.json"
    whole = path.read_bytes()
    for place in range(len(whole)):
        content = bytearray(whole)
        content[place] ^= 1 << place % 8
        path.write_bytes(content)
        assert checkpoint.find_damage(path.parent) is not None, content


def test_a_manifest_without_a_checksum_is_one_of_an_older_version(tmp_path):
    path = save(tmp_path, 3)
    older = {"state.json": checksum(path / "state.json")}
    (path / "manifest.json").write_text(json.dumps(older))
    assert newest_checkpoint(tmp_path) == (path, [])


def test_the_best_weights_go_back_with_the_run(tmp_path):
    """A run that was killed after a better evaluation than its checkpoint knows, or that goes on elsewhere."""
    module, _ = make()
    checkpoint.save_weights(module, tmp_path / "best.safetensors")
    before = (tmp_path / "best.safetensors").read_bytes()
    path = save(tmp_path, 3)
    assert sorted(file.name for file in path.iterdir()) == ["best.safetensors", *FILES]
    checkpoint.save_weights(make(seed=1)[0], tmp_path / "best.safetensors")
    assert (tmp_path / "best.safetensors").read_bytes() != before
    for folder in (tmp_path, tmp_path / "elsewhere"):
        checkpoint.restore_best(path, folder)
        assert (folder / "best.safetensors").read_bytes() == before
    checkpoint.save_weights(make(seed=2)[0], tmp_path / "best.safetensors")
    assert checkpoint.find_damage(path) is None


def test_a_run_that_goes_on_in_another_folder_ends_with_its_best_weights(tmp_path):
    data, ended = encoded(tmp_path / "data", classifier().task), []
    for name, losses, begin in (("whole", [1, 2, 3], None), ("elsewhere", [2, 3], "whole/checkpoints/step-000003")):
        student, told = classifier(), iter(losses)
        run = training(
            tmp_path / name, student, classifier(seed=7), data, max_steps=6, evaluate_every=2, checkpoint_every=3
        )
        run.evaluate, run.best_metric = lambda _, told=told: {"loss": next(told)}, "loss"
        run.resume_from = None if begin is None else tmp_path / begin
        assert fit(run).best_step == 2
        ended.append(student.model.state_dict())
    assert all(torch.equal(weight, ended[1][name]) for name, weight in ended[0].items())


def test_the_best_weights_are_copied_where_there_are_no_links(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    checkpoint.save_weights(make()[0], tmp_path / "best.safetensors")
    path = save(tmp_path, 3)
    assert (path / "best.safetensors").read_bytes() == (tmp_path / "best.safetensors").read_bytes()


def test_an_empty_manifest_vouches_for_nothing(tmp_path):
    path = save(tmp_path, 3)
    (path / "manifest.json").write_text("{}")
    assert newest_checkpoint(tmp_path)[0] is None


def test_a_damaged_newer_checkpoint_does_not_push_out_the_good_one(tmp_path):
    save(tmp_path, 3, keep=1)
    shutil.copytree(tmp_path / "step-000003", tmp_path / "step-000009")
    truncate(tmp_path / "step-000009" / "state.json")
    save(tmp_path, 6, keep=1)
    assert steps(tmp_path) == [6]


def test_a_checkpoint_of_another_config_is_refused(tmp_path):
    path = save(tmp_path, 3)
    check_resumable(path, "this run")
    with pytest.raises(UserError, match="another config"):
        check_resumable(path, "another run")
    with pytest.raises(UserError, match="no such checkpoint"):
        check_resumable(tmp_path / "step-000004", "this run")


def test_what_an_interrupted_save_left_is_ignored_and_cleaned(tmp_path):
    beside = tmp_path / ".step-000003.partial"
    beside.mkdir()
    (beside / "weights.safetensors").write_text("half")
    assert newest_checkpoint(tmp_path) == (None, [])
    path = save(tmp_path, 3)
    assert [entry.name for entry in tmp_path.iterdir()] == ["step-000003"]
    assert ["manifest.json", *unsealed((path / "manifest.json").read_bytes())] == FILES


def test_what_the_writing_in_the_background_met_is_raised_later(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("distillkit.training.writer.write_whole", refuse)
    module, optimizer = make()
    writer = Writer(tmp_path, accelerator(), 2, background=True)
    writer.check()
    writer.save(module, optimizer, Progress(3, torch.zeros(1), torch.zeros(1)), "this run")
    with pytest.raises(OSError, match="No space left"):
        writer.wait()
    assert newest_checkpoint(tmp_path) == (None, [])


def test_no_folder_no_checkpoint(tmp_path):
    assert newest_checkpoint(tmp_path / "none") == (None, [])


def test_weights_alone(tmp_path):
    module, _ = make()
    checkpoint.save_weights(module, tmp_path / "deep" / "best.safetensors")
    other, _ = make(seed=1)
    checkpoint.load_weights(other, tmp_path / "deep" / "best.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), other.parameters(), strict=True))
    truncate(tmp_path / "deep" / "best.safetensors")
    with pytest.raises(UserError, match=r"best\.safetensors"):
        checkpoint.load_weights(other, tmp_path / "deep" / "best.safetensors")
