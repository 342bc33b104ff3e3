"""Export to ONNX, int8, and the folder that comes out."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from distillkit.compression import export as exporting
from distillkit.compression.export import OnnxFloat
from distillkit.compression.int8 import OnnxInt8
from distillkit.compression.variant import Context, Variant
from distillkit.errors import UserError
from distillkit.models.live import LiveModel
from distillkit.models.onnx import OnnxModel, is_onnx
from distillkit.models.tokenizers import ByteLevelBPE
from distillkit.schema import TrainSettings
from distillkit.signals import Batch
from distillkit.tasks.causal_lm import CausalLM
from distillkit.tasks.sequence_classification import SequenceClassification

VOCABULARY = 258
SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
COMMON = {"vocab_size": VOCABULARY, "pad_token_id": 1}
CLASSIFIERS = {
    "bert": lambda: BertForSequenceClassification(BertConfig(**SIZES, **COMMON)),
    "distilbert": lambda: DistilBertForSequenceClassification(
        DistilBertConfig(dim=64, n_layers=2, n_heads=4, hidden_dim=128, **COMMON)
    ),
    "roberta": lambda: RobertaForSequenceClassification(RobertaConfig(**SIZES, **COMMON)),
}
LANGUAGE_MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, **COMMON)),
    "qwen2_tied": lambda: Qwen2ForCausalLM(
        Qwen2Config(**SIZES, **COMMON, num_key_value_heads=2, tie_word_embeddings=True)
    ),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(n_embd=64, n_layer=2, n_head=4, n_positions=64, **COMMON)),
}


def live_model(name: str) -> LiveModel:
    torch.manual_seed(0)
    model = (CLASSIFIERS | LANGUAGE_MODELS)[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)  # random models answer nearly alike to everything
    task = SequenceClassification(max_length=32) if name in CLASSIFIERS else CausalLM(max_length=32)
    return LiveModel(model, ByteLevelBPE(VOCABULARY).train([]), task)


def batch(live: LiveModel, texts: list[str]) -> Batch:
    rows = live.task.encode({"text": texts}, live.tokenizer, None)
    names = list(rows)
    return live.task.collate(
        [dict(zip(names, row, strict=True)) for row in zip(*rows.values(), strict=True)], live.tokenizer
    )


def context(live: LiveModel, folder: Path) -> Context:
    return Context(batch(live, ["some example", "and a longer example", "z"]), TrainSettings(), None, folder)


def answer(model, question: Batch) -> torch.Tensor:
    with torch.no_grad():
        logits = model(question).logits
    return logits.rows(0, len(logits))


QUESTIONS = [
    ["one"],
    ["two texts of", "rather different lengths, aren't they"],
    [f"number {n}" * n for n in range(1, 6)],
]


@pytest.mark.parametrize("name", [*CLASSIFIERS, *LANGUAGE_MODELS])
def test_an_export_answers_as_the_model_for_any_shape(name, tmp_path):
    live = live_model(name)
    variant = OnnxFloat()(Variant(live), context(live, tmp_path))
    for texts in QUESTIONS:
        question = batch(live, texts)
        torch.testing.assert_close(answer(variant.model, question), answer(live, question), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["bert", "llama", "gpt2", "qwen2_tied"])
def test_int8_is_smaller_answers_nearly_alike_and_loads_again(name, tmp_path):
    live = live_model(name)
    floating = OnnxFloat()(Variant(live), context(live, tmp_path))
    variant = OnnxInt8()(floating, context(live, tmp_path))
    question = batch(live, QUESTIONS[2])
    expected, got = answer(live, question), answer(variant.model, question)
    assert (got - expected).norm() < 0.1 * expected.norm()
    assert not torch.equal(got, expected)
    matrices = sum(parameter.numel() for parameter in live.model.parameters() if parameter.dim() == 2)
    sizes = weights(tmp_path / "int8")
    assert sizes.get("INT8", 0) + sizes.get("UINT8", 0) == pytest.approx(matrices, rel=0.03)  # a tied head once

    variant.model.save(tmp_path / "int8 saved")
    again = OnnxModel.load(tmp_path / "int8 saved", live.task)
    assert torch.equal(answer(again, question), got)
    assert again.count_parameters() == sum(parameter.numel() for parameter in live.model.parameters())
    assert again.tokenizer.get_vocab() == live.tokenizer.get_vocab()
    assert is_onnx(str(tmp_path / "int8 saved"))
    jsons = 3 if name == "bert" else 4  # how it writes
    assert sorted(path.suffix for path in (tmp_path / "int8 saved").iterdir()) == [*[".json"] * jsons, ".onnx"]


def weights(folder: Path) -> dict[str, int]:
    """Return the bytes of the constants by their type."""
    import onnx

    sizes: dict[str, int] = {}
    for tensor in onnx.load(folder / "model.onnx").graph.initializer:
        kind = onnx.TensorProto.DataType.Name(tensor.data_type)
        sizes[kind] = sizes.get(kind, 0) + onnx.numpy_helper.to_array(tensor).nbytes
    return sizes


def test_int8_stores_a_byte_a_weight_and_excluded_parts_stay_float(tmp_path):
    live = live_model("bert")
    matrices = sum(parameter.numel() for parameter in live.model.parameters() if parameter.dim() == 2)
    embeddings = sum(m.weight.numel() for m in live.model.modules() if isinstance(m, torch.nn.Embedding))
    floating = OnnxFloat()(Variant(live), context(live, tmp_path / "float"))

    def quantised(**arguments) -> int:
        folder = tmp_path / "-".join(["int8", *arguments])
        OnnxInt8(**arguments)(floating, context(live, folder))
        sizes = weights(folder / "int8")
        return sizes.get("INT8", 0) + sizes.get("UINT8", 0)

    slack = 0.02 * matrices  # zero points
    assert quantised() == pytest.approx(matrices, abs=slack)
    assert quantised(embeddings=False) == pytest.approx(matrices - embeddings, abs=slack)
    first_layer = sum(p.numel() for n, p in live.model.named_parameters() if ".layer.0." in n and p.dim() == 2)
    assert quantised(exclude=["*.layer.0.*"]) == pytest.approx(matrices - first_layer, abs=slack)


def test_an_export_names_no_file_of_the_machine_that_made_it(tmp_path):
    live = live_model("bert")
    floating = OnnxFloat()(Variant(live), context(live, tmp_path))
    OnnxInt8()(floating, context(live, tmp_path))
    for folder in ("float", "int8"):
        assert b".py" not in (tmp_path / folder / "model.onnx").read_bytes()


def test_a_pattern_without_match_and_one_that_leaves_nothing_are_refused(tmp_path):
    live = live_model("bert")
    floating = OnnxFloat()(Variant(live), context(live, tmp_path))
    with pytest.raises(UserError, match=r"exclude: .*'\*\.layer\.7\.\*'"):
        OnnxInt8(exclude=["*.layer.7.*"])(floating, context(live, tmp_path))
    with pytest.raises(UserError, match="nothing is left to quantise"):
        OnnxInt8(exclude=["*"])(floating, context(live, tmp_path))


def test_a_pruned_half_precision_model_exports_in_float32_and_keeps_its_counts(tmp_path):
    live = live_model("bert")
    with torch.no_grad():
        live.model.classifier.weight.zero_()
    live.model.to(torch.bfloat16)
    zeros = live.model.classifier.weight.numel() + live.count_parameters() - live.count_nonzeros()
    variant = OnnxFloat()(Variant(live), context(live, tmp_path))
    assert variant.model.count_parameters() == live.count_parameters()
    assert variant.model.count_nonzeros() == live.count_nonzeros() <= live.count_parameters() - zeros // 2
    assert answer(variant.model, batch(live, ["text"])).dtype == torch.float32


def test_an_export_that_answers_otherwise_is_refused(tmp_path, monkeypatch):
    live = live_model("bert")
    export = exporting.export

    def export_and_change(model, example, folder, cache):
        export(model, example, folder, cache)
        with torch.no_grad():
            model.model.classifier.bias.add_(1)

    monkeypatch.setattr(exporting, "export", export_and_change)
    with pytest.raises(UserError, match="differs"):
        OnnxFloat()(Variant(live), context(live, tmp_path))


def test_an_architecture_that_cannot_be_exported_is_refused_in_one_line(tmp_path, monkeypatch):
    live = live_model("bert")
    forward = live.model.forward

    def data_dependent(**inputs):
        if inputs["input_ids"].sum().item() > 3:
            return forward(**inputs)
        raise ValueError

    monkeypatch.setattr(live.model, "forward", data_dependent)
    with pytest.raises(UserError, match="cannot export BertForSequenceClassification to ONNX") as refused:
        OnnxFloat()(Variant(live), context(live, tmp_path))
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 300


@torch.library.custom_op("distillkit_tests::strange", mutates_args=())
def strange(values: torch.Tensor) -> torch.Tensor:
    return values * 2


@strange.register_fake
def _(values: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(values)


def test_an_operator_that_onnx_does_not_know_is_named_in_one_line(tmp_path, monkeypatch):
    live = live_model("bert")
    forward = live.model.classifier.forward
    monkeypatch.setattr(live.model.classifier, "forward", lambda values: forward(strange(values)))
    with pytest.raises(UserError, match=r"^cannot export BertForSequenceClassification to ONNX: .*strange") as refused:
        OnnxFloat()(Variant(live), context(live, tmp_path))
    assert len(str(refused.value)) < 300


def test_a_missing_package_is_named_before_anything_is_loaded(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("distillkit.models.graph.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'distillkit\[onnx\]'"):
        OnnxInt8()
