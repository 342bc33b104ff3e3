"""Weights in 8 and 4 bits: rounding, error compensation, and folders that plain transformers load."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from distillkit.compression.calibration import Calibration
from distillkit.compression.gptq import compensated, input_products
from distillkit.compression.replay import Replay
from distillkit.compression.rounding import Grid, rounded, scales
from distillkit.compression.variant import Context, Variant
from distillkit.compression.weight_only import WeightOnly
from distillkit.errors import UserError
from distillkit.models.live import LiveModel
from distillkit.models.load import load_live
from distillkit.models.tokenizers import ByteLevelBPE
from distillkit.schema import TrainSettings
from distillkit.signals import Batch
from distillkit.tasks.causal_lm import CausalLM
from distillkit.tasks.sequence_classification import SequenceClassification

SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
COMMON = {"vocab_size": 258, "pad_token_id": 1}
TEXTS = ["a first text", "and one more", "something else", "numbers 1 2 3"] * 4


def live_model(name: str) -> LiveModel:
    torch.manual_seed(0)
    if name == "bert":
        model, task = (
            BertForSequenceClassification(BertConfig(**SIZES, **COMMON)),
            SequenceClassification(max_length=32),
        )
    else:
        tied = name == "tied"
        model, task = (
            LlamaForCausalLM(LlamaConfig(**SIZES, **COMMON, tie_word_embeddings=tied)),
            CausalLM(max_length=32),
        )
    return LiveModel(model.eval(), ByteLevelBPE(258).train([]), task)


def batch(live: LiveModel, texts: list[str]) -> Batch:
    rows = live.task.encode({"text": texts}, live.tokenizer, None)
    names = list(rows)
    return live.task.collate(
        [dict(zip(names, row, strict=True)) for row in zip(*rows.values(), strict=True)], live.tokenizer
    )


class Rows:
    def __init__(self, live: LiveModel) -> None:
        self.live = live

    def __len__(self) -> int:
        return len(TEXTS)

    def batch(self, indices) -> Batch:
        return batch(self.live, [TEXTS[index] for index in indices])


def context(live: LiveModel, folder: Path) -> Context:
    rows = Calibration(lambda: Rows(live), rows=16, batch_size=4)
    return Context(batch(live, TEXTS[:4]), TrainSettings(), None, folder, rows)


def answer(model, question: Batch) -> torch.Tensor:
    with torch.no_grad():
        logits = model(question).logits
    return logits.rows(0, len(logits))


def linear_weights(model) -> dict[str, torch.Tensor]:
    return {
        name: module.weight.detach().clone()
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and (".layers." in name or ".layer." in name)
    }


@pytest.mark.parametrize("importance", [None, torch.tensor([1.0, 9.0, 4.0, 1.0])])
def test_scales_are_the_best_of_those_that_are_tried(importance):
    torch.manual_seed(3)
    weight, grid = torch.randn(5, 4), Grid(4, 2)
    chosen = scales(weight, grid, 2, importance)
    counts = torch.ones(4) if importance is None else importance
    for row in range(5):
        for group in range(2):
            part, count = weight[row, 2 * group : 2 * group + 2], counts[2 * group : 2 * group + 2]
            errors = {}
            for shrink in torch.linspace(1, 0.5, 20).tolist():
                scale = part.abs().max() / 7 * shrink
                codes = torch.clamp(torch.round(part / scale), -8, 7)
                errors[float(scale)] = float((count * (codes * scale - part) ** 2).sum())
            assert errors[min(errors, key=lambda s: abs(s - float(chosen[row, group])))] == pytest.approx(
                min(errors.values()), abs=1e-9
            )


def test_rounding_goes_to_the_nearest_code():
    grid = Grid(4, None)
    values = rounded(torch.tensor([[0.24, -0.26, 9.0, -9.0]]), torch.tensor([[0.5]]), grid)
    assert values.tolist() == [[0.0, -0.5, 3.5, -4.0]]


def test_compensation_follows_the_definition():
    """Against optimal brain quantisation by its definition: every step solves for the inputs that are left."""
    torch.manual_seed(0)
    inputs = torch.randn(50, 6, dtype=torch.float64) @ torch.randn(6, 6, dtype=torch.float64)
    weight, grid = torch.randn(3, 6, dtype=torch.float64), Grid(4, None)
    product = inputs.T @ inputs
    scale = weight.abs().amax(dim=1, keepdim=True) / 7
    damped = product + 0.01 * product.diagonal().mean() * torch.eye(6)
    expected, order = weight.clone(), product.diagonal().argsort(descending=True).tolist()
    for place, column in enumerate(order):
        before = expected[:, column].clone()
        expected[:, column] = (before / scale[:, 0]).round().clamp(-8, 7) * scale[:, 0]
        left = order[place + 1 :]
        if left:  # argmin over the rest of (δ H δᵀ) with δ_column given
            moved = (expected[:, column] - before).unsqueeze(1)
            expected[:, left] -= moved * torch.linalg.solve(damped[left][:, left], damped[left, column])
    torch.testing.assert_close(compensated(weight, product, scale, grid), expected)


def test_compensation_halves_the_error_of_a_layer_with_correlated_inputs():
    torch.manual_seed(0)
    inputs = torch.randn(400, 16) @ torch.randn(16, 200) + 0.1 * torch.randn(400, 200)
    weight, grid = torch.randn(32, 200), Grid(4, 50)
    scale = scales(weight, grid, 50)
    nearest, better = rounded(weight, scale, grid), compensated(weight, inputs.T @ inputs, scale, grid)
    error = [float(((found - weight) @ inputs.T).norm()) for found in (nearest, better)]
    assert error[1] < 0.5 * error[0]
    codes = better.view(32, 4, 50) / scale.unsqueeze(-1)
    torch.testing.assert_close(codes, codes.round(), atol=1e-4, rtol=0)


def test_products_leave_padding_out():
    live = live_model("llama")
    module = live.model.model.layers[1].mlp.down_proj
    seen = []
    handle = module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    question = batch(live, ["short", "a much longer text than that"])
    live(question)
    handle.remove()
    values = seen[0][question.inputs["attention_mask"].bool()].double()
    found = input_products(Replay(live, [question, question]), {"here": module})["here"]
    torch.testing.assert_close(found, 2 * values.T @ values)


@pytest.mark.parametrize("method", ["nearest", "gptq"])
@pytest.mark.parametrize(("bits", "group", "share"), [(8, None, 0.30), (4, 32, 0.20)])
@pytest.mark.parametrize(
    ("name", "auto"),
    [("llama", AutoModelForCausalLM), ("tied", AutoModelForCausalLM), ("bert", AutoModelForSequenceClassification)],
)
def test_a_packed_folder_loads_in_plain_transformers_and_here(name, auto, bits, group, share, method, tmp_path):
    live = live_model(name)
    setting, parameters, before = context(live, tmp_path), live.count_parameters(), linear_weights(live.model)
    products = input_products(
        Replay(live, setting.calibration.batches), {n: live.model.get_submodule(n) for n in before}
    )
    expected = answer(live, setting.example)
    variant = WeightOnly(bits, group, method)(Variant(live), setting)
    got = answer(variant.model, setting.example)
    assert (got - expected).norm() < (0.02 if bits == 8 else 0.3) * expected.norm()
    assert variant.notes["share_of_float32"] < share

    variant.model.save(tmp_path / "saved")
    plain, info = auto.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    logits = plain.eval()(**setting.example.inputs).logits[setting.example.counted]
    torch.testing.assert_close(logits, got, atol=1e-5, rtol=1e-5)
    again = load_live(str(tmp_path / "saved"), live.task, "model", dtype="auto").eval()
    assert torch.equal(answer(again, setting.example), got)
    assert again.count_parameters() == parameters
    stored = load_file(tmp_path / "saved" / "model.safetensors")
    after, nearest = linear_weights(again.model), {}
    for module, weight in after.items():
        groups = before[module].view(len(weight), -1, group or weight.shape[1])
        scale = stored[f"{module}.weight_scale"].unsqueeze(-1)
        assert (scale <= 1.0001 * groups.abs().amax(dim=-1, keepdim=True) / (2 ** (bits - 1) - 1)).all()
        codes = (groups / scale).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        nearest[module] = (codes * scale).view_as(weight)
        found = weight.view_as(groups) / scale
        torch.testing.assert_close(found, found.round(), atol=1e-3, rtol=0)
        assert found.round().min() >= -(2 ** (bits - 1))
        assert found.round().max() <= 2 ** (bits - 1) - 1
        if method == "nearest":
            torch.testing.assert_close(weight, nearest[module], atol=1e-6, rtol=1e-5)
    if method == "gptq":  # not each weight is as near, but what the first layer answers to the calibration rows is
        first = {module: product for module, product in products.items() if re.search(r"\.layers?\.0\.", module)}
        lost = [
            sum(float(((e := (weights[m] - before[m]).double()) @ h * e).sum()) for m, h in first.items())
            for weights in (after, nearest)
        ]
        assert lost[0] < (0.9 if bits == 4 else 1.0) * lost[1]
    kept = json.loads((tmp_path / "saved/config.json").read_text())["quantization_config"]
    assert kept["format"] == "pack-quantized"


def test_excluded_layers_keep_their_weights(tmp_path):
    live = live_model("llama")
    before = linear_weights(live.model)
    variant = WeightOnly(4, 32, exclude=["*.layers.0.*"])(Variant(live), context(live, tmp_path))
    for name, weight in linear_weights(variant.model.model).items():
        assert torch.equal(weight, before[name]) == (".layers.0." in name)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bits": 3}, r"^bits: must be 8 or 4, got 3"),
        ({"bits": 4, "group_size": 0}, r"^group_size: "),
        ({"bits": 4, "method": "gtpq"}, r"^method: .*'gptq'"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        WeightOnly(**arguments)


def test_what_cannot_work_is_refused_before_anything_is_computed():
    with pytest.raises(UserError, match=r"group_size: .* has 64 inputs, which 48 does not divide; set it to 64"):
        WeightOnly(4, 48).check(live_model("llama"))
    with pytest.raises(UserError, match=r"^exclude: .*'\*\.layers\.7\.\*'"):
        WeightOnly(4, exclude=["*.layers.7.*"]).check(live_model("llama"))
    gpt2 = GPT2LMHeadModel(GPT2Config(n_embd=64, n_layer=2, n_head=4, n_positions=64, **COMMON))
    live = LiveModel(gpt2.eval(), ByteLevelBPE(258).train([]), CausalLM(max_length=32))
    with pytest.raises(UserError, match="no place for the Conv1D of GPT2LMHeadModel; use compress=int8"):
        WeightOnly(8).check(live)
