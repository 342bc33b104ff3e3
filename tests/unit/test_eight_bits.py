"""With its state in 8 bits an optimiser learns about the same, and goes on from a checkpoint to the last bit."""

from __future__ import annotations

import pytest
import torch
from safetensors import safe_open

from distillkit.errors import UserError
from distillkit.models.live import LiveModel
from distillkit.schema import Optimizer, TrainSettings
from distillkit.tasks.causal_lm import CausalLM
from distillkit.training import settings
from distillkit.training.loop import fit
from tests.tiny import encoded, events, llama, tokenizer, training


def model(layers: int, seed: int) -> LiveModel:
    return LiveModel(llama(layers, 32, seed), tokenizer(), CausalLM(max_length=32))


def run(folder, begin=None, optimizer=Optimizer.adamw_8bit) -> tuple[dict[str, torch.Tensor], list[float]]:
    student = model(1, seed=0)
    data = encoded(folder / "data", student.task)
    every = {"max_steps": 8, "checkpoint_every": 4, "evaluate_every": 8}
    made = training(folder, student, model(2, seed=7), data, optimizer=optimizer, **every)
    made.resume_from = begin
    fit(made)
    return student.model.state_dict(), [event["loss"] for event in events(folder)]


def test_it_learns_the_same_and_resumes_to_the_last_bit(tmp_path):
    pytest.importorskip("bitsandbytes")
    _, exact = run(tmp_path / "exact", optimizer=Optimizer.adamw)
    weights, losses = run(tmp_path / "eight")
    assert losses == pytest.approx(exact, rel=1e-3)
    assert losses != exact
    checkpoint = tmp_path / "eight/checkpoints/step-000004"
    with safe_open(checkpoint / "optimizer.safetensors", "pt") as file:
        assert torch.uint8 in {file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118
    resumed, _ = run(tmp_path / "resumed", checkpoint)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in resumed.items())


def test_without_bitsandbytes_it_is_refused(monkeypatch):
    monkeypatch.setattr(settings, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"^train\.optimizer: adamw_8bit needs bitsandbytes; pip install 'distillkit\["):
        settings.check_settings(TrainSettings(optimizer=Optimizer.adamw_8bit))
