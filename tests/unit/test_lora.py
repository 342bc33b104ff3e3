"""LoRA: what is trained, what it adds by hand, and that what is exported is a plain model."""

from __future__ import annotations

from importlib import util

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, GPT2Config, GPT2LMHeadModel

from distillkit.errors import UserError
from distillkit.models.live import LiveModel
from distillkit.models.lora import Adapters, adaptable
from distillkit.schema import LoraSettings, TrainSettings
from distillkit.tasks.causal_lm import CausalLM
from distillkit.training.loop import fit
from distillkit.training.settings import check_settings
from tests.tiny import classifier, encoded, language_model, save, tokenizer, train, training


def lora(rank: int | None = 2, **settings) -> LoraSettings:
    return LoraSettings(rank=rank, **settings)


def gpt2(seed: int = 0) -> LiveModel:
    torch.manual_seed(seed)
    config = GPT2Config(vocab_size=320, n_embd=16, n_layer=2, n_head=2, n_positions=64, bos_token_id=0, eos_token_id=0)
    return LiveModel(GPT2LMHeadModel(config), tokenizer(), CausalLM(max_length=32))


def fine_tuned(tmp_path, kind, **settings) -> tuple[LiveModel, set[str], dict[str, torch.Tensor]]:
    """Train for a few steps; return the student, the names of what changed, and what was before."""
    student = kind()
    before = {name: tensor.clone() for name, tensor in student.model.state_dict().items()}
    data = encoded(tmp_path / "data", student.task)
    train(tmp_path, student, kind(seed=7), data, **{"max_steps": 4, "evaluate_every": 4, "lora": lora()} | settings)
    after = student.model.state_dict()
    assert list(after) == list(before)
    return student, {name for name in before if not torch.equal(before[name], after[name])}, before


def layers(student: LiveModel) -> set[str]:
    return {f"{name}.weight" for name in adaptable(student.model, None, set())}


def test_a_classifier_changes_in_its_layers_linear_maps_and_its_head(tmp_path):
    student, changed, _ = fine_tuned(tmp_path, classifier)
    assert changed == layers(student) | {"classifier.weight", "classifier.bias"}
    assert len(changed) == 2 * 6 + 2


@pytest.mark.parametrize("kind", [language_model, gpt2])
def test_a_language_model_changes_in_its_layers_only(tmp_path, kind):
    student, changed, _ = fine_tuned(tmp_path, kind)
    assert changed == layers(student)


def test_what_is_added_is_of_the_given_rank(tmp_path):
    student, _, before = fine_tuned(tmp_path, classifier)
    weight = "bert.encoder.layer.0.attention.self.query.weight"
    added = student.model.state_dict()[weight] - before[weight]
    values = torch.linalg.svdvals(added.double())
    assert values[1] > 1e-4
    assert values[2] < 1e-6


def test_the_merged_model_says_what_the_adapters_said():
    """W x + (alpha / rank) · B A x, for a linear map and for GPT-2's transposed one."""
    for live, path in (
        (classifier(), "bert.encoder.layer.1.attention.self.value"),
        (gpt2(), "transformer.h.1.attn.c_attn"),
    ):
        module = live.model.get_submodule(path)
        before = module.weight.detach().clone()
        adapters = Adapters(live.model, [path], lora(rank=2, alpha=6.0))
        first, second = (live.model.get_submodule(f"{path}.lora_{part}.default").weight for part in "AB")
        torch.nn.init.normal_(second)
        vectors = torch.randn(5, 16)
        expected = module(vectors) + 3.0 * vectors @ first.T @ second.T
        torch.testing.assert_close(live.model.get_submodule(path)(vectors), expected)
        adapters.merge()
        assert live.model.get_submodule(path) is module
        torch.testing.assert_close(module(vectors), expected)
        assert not torch.equal(module.weight, before)


@pytest.mark.parametrize(
    ("kind", "auto"), [(classifier, AutoModelForSequenceClassification), (language_model, AutoModelForCausalLM)]
)
def test_the_exported_folder_is_a_plain_model_and_the_adapter_beside_it_gives_the_same(tmp_path, kind, auto):
    start = save(kind(), tmp_path / "start")
    student = kind()
    student.model.name_or_path = str(start)
    data = encoded(tmp_path / "data", student.task)
    run = training(tmp_path, student, kind(seed=7), data, max_steps=4, evaluate_every=4, lora=lora(), keep_best=False)
    run.adapter = tmp_path / "adapter"
    result = fit(run)
    student.save(tmp_path / "model")
    model, info = auto.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(info.values())
    assert {file.name for file in (tmp_path / "model").glob("*adapter*")} == set()
    inputs = data.batch([0, 1, 2]).inputs
    expected = student.model.eval()(**inputs).logits
    torch.testing.assert_close(model.eval()(**inputs).logits, expected, rtol=0, atol=0)
    adapted = PeftModel.from_pretrained(auto.from_pretrained(start), tmp_path / "adapter").eval()
    torch.testing.assert_close(adapted(**inputs).logits, expected, rtol=1e-5, atol=1e-6)
    stored = load_file(tmp_path / "adapter/adapter_model.safetensors")
    assert sum(tensor.numel() for tensor in stored.values()) == result.trained_parameters
    assert result.trained_parameters < 0.3 * student.count_parameters()


def test_frozen_layers_get_no_adapter_and_patterns_choose(tmp_path):
    _, changed, _ = fine_tuned(tmp_path, classifier, freeze=1, lora=lora(targets=["*.query", "*.attention.output"]))
    layer = "bert.encoder.layer.1.attention"
    assert changed == {
        f"{layer}.self.query.weight",
        f"{layer}.output.dense.weight",
        "classifier.weight",
        "classifier.bias",
    }


def test_adapters_thaw_like_the_layers_that_they_are_in(tmp_path):
    student = classifier()
    data = encoded(tmp_path / "data", student.task)
    run = training(
        tmp_path, student, classifier(seed=7), data, max_steps=4, evaluate_every=9, lora=lora(), unfreeze=2, warmup=0
    )
    moved = []
    run.after_step = lambda: moved.append(
        [bool(layer.intermediate.dense.lora_B.default.weight.any()) for layer in student.model.bert.encoder.layer]
    )
    fit(run)
    assert moved == [[False, False], [False, True], [True, True], [True, True]]


def test_what_cannot_be_adapted_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"train\.lora\.targets: nothing is named '\*\.q_proj'; there are, for example"):
        fine_tuned(tmp_path, classifier, lora=lora(targets=["*.q_proj"]))
    with pytest.raises(UserError, match=r"train\.lora\.targets: no linear map is left for an adapter"):
        fine_tuned(tmp_path, classifier, freeze=2)


def test_without_peft_it_says_what_to_install(monkeypatch):
    check_settings(TrainSettings(lora=lora()))
    monkeypatch.setattr(
        "distillkit.models.lora.find_spec", lambda name: None if name == "peft" else util.find_spec(name)
    )
    check_settings(TrainSettings())
    with pytest.raises(UserError, match=r"train\.lora\.rank: LoRA needs peft; pip install 'distillkit\[peft\]'"):
        check_settings(TrainSettings(lora=lora()))
