"""Exports with keys and values: they answer and write as transformers do."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from distillkit.compression.calibration import Calibration
from distillkit.compression.export import OnnxFloat
from distillkit.compression.int8 import OnnxInt8
from distillkit.compression.qat import rounding
from distillkit.compression.variant import Context, Variant
from distillkit.errors import UserError
from distillkit.models.live import LiveModel
from distillkit.models.onnx import OnnxModel, is_onnx
from distillkit.models.tokenizers import ByteLevelBPE
from distillkit.schema import TrainSettings
from distillkit.signals import Batch
from distillkit.tasks.causal_lm import CausalLM
from distillkit.tasks.seq2seq_lm import Seq2SeqLM

COMMON = {"vocab_size": 258, "pad_token_id": 1, "eos_token_id": 0}
SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
HEADS = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128}
DECODERS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, **COMMON, num_key_value_heads=2)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(n_embd=64, n_layer=2, n_head=4, n_positions=64, **COMMON)),
}
ENCODER_DECODERS = {
    "t5": lambda: T5ForConditionalGeneration(
        T5Config(
            **COMMON,
            **{"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_decoder_layers": 1, "num_heads": 4},
            decoder_start_token_id=1,
        )
    ),
    "bart": lambda: BartForConditionalGeneration(
        BartConfig(
            **COMMON,
            **HEADS,
            d_model=64,
            encoder_layers=2,
            decoder_layers=2,
            max_position_embeddings=256,
            tie_word_embeddings=False,
        )
    ),
}
TWICE = 2.0  # of what rounding alone costs
TEXTS = ["some text", "and a longer text", "z"]


def live_model(name: str, scale: float = 4.0) -> LiveModel:
    torch.manual_seed(1)
    model = (DECODERS | ENCODER_DECODERS)[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():  # random models otherwise say the same again and again
            if parameter.dim() == 2:
                parameter.mul_(scale)
    task = (
        CausalLM(max_length=32) if name in DECODERS else Seq2SeqLM(32, 32, metrics=["chrf"], beams=3, max_new_tokens=12)
    )
    return LiveModel(model, ByteLevelBPE(258).train([]), task)


def batch(live: LiveModel, texts: list[str]) -> Batch:
    columns = {"text": texts} if live.task.name == "causal_lm" else {"source": texts, "target": texts[::-1]}
    rows = live.task.encode(columns, live.tokenizer, None)
    rows = {name: values for name, values in rows.items() if name not in ("truncated", "length")}
    return live.task.collate(
        [dict(zip(rows, row, strict=True)) for row in zip(*rows.values(), strict=True)], live.tokenizer
    )


def context(live: LiveModel, folder: Path) -> Context:
    return Context(batch(live, TEXTS), TrainSettings(), None, folder)


def answer(model, question: Batch) -> torch.Tensor:
    with torch.no_grad():
        logits = model(question).logits
    return logits.rows(0, len(logits))


def padded_left(question: Batch) -> dict[str, torch.Tensor]:
    mask = question.inputs["attention_mask"].flip(1)
    return {"input_ids": question.inputs["input_ids"].flip(1) * mask + (1 - mask), "attention_mask": mask}


@pytest.fixture(scope="module", params=[*DECODERS, *ENCODER_DECODERS])
def exported_one(request, tmp_path_factory) -> tuple[str, LiveModel, OnnxModel]:
    """Return a name, its model, and its export."""
    live = live_model(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, live, OnnxFloat()(Variant(live), context(live, folder)).model


@pytest.mark.parametrize("beams", [1, 3])
def test_an_export_writes_what_transformers_write(exported_one, beams):
    name, live, exported = exported_one
    assert exported.graph.caches
    question = batch(live, [f"number {n}" * n for n in range(1, 4)])
    names = ("input_ids", "attention_mask")
    inputs = padded_left(question) if name in DECODERS else {key: question.inputs[key] for key in names}
    how = {"max_new_tokens": 12, "num_beams": beams, "do_sample": False, "pad_token_id": 1}
    expected, written = live.model.generate(**inputs, **how), exported.writer.generate(**inputs, **how)
    assert torch.equal(written, expected)
    rows = (expected[:, inputs["input_ids"].shape[1] :] if name in DECODERS else expected).tolist()
    assert len({tuple(row) for row in rows}) == len(rows)
    assert max(len(set(row)) for row in rows) >= 4


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_an_encoder_decoder_answers_alike_and_its_int8_loads_again(name, tmp_path):
    live = live_model(name, scale=1.0)
    floating = OnnxFloat()(Variant(live), context(live, tmp_path))
    question = batch(live, ["one", "two texts of", "rather different lengths, aren't they"])
    expected = answer(live, question)
    torch.testing.assert_close(answer(floating.model, question), expected, rtol=1e-3, atol=1e-3)
    assert floating.model.count_parameters() == live.count_parameters()

    small = OnnxInt8()(floating, context(live, tmp_path)).model
    assert (answer(small, question) - expected).norm() < TWICE * rounding_error(live, question, expected)
    small.save(tmp_path / "saved")
    assert is_onnx(str(tmp_path / "saved"))
    again = OnnxModel.load(tmp_path / "saved", live.task)
    assert torch.equal(answer(again, question), answer(small, question))
    assert sum(path.stat().st_size for path in (tmp_path / "saved").glob("*.onnx")) < 0.5 * sum(
        path.stat().st_size for path in floating.model.folder.glob("*.onnx")
    )


def rounding_error(live: LiveModel, question: Batch, expected: torch.Tensor) -> torch.Tensor:
    """What int8 costs at best: one scale for an embedding, for an output of a linear map, for a token of its input."""
    small = LiveModel(copy.deepcopy(live.model), live.tokenizer, live.task)
    with torch.no_grad():
        for module in small.model.modules():
            if isinstance(module, torch.nn.Embedding):
                step = module.weight.abs().max() / 127
                module.weight.copy_((module.weight / step).round() * step)
    linear = {name: module for name, module in small.model.named_modules() if isinstance(module, torch.nn.Linear)}
    with rounding(linear, 8, 8):
        return (answer(small, question) - expected).norm()


def test_outliers_between_t5s_feed_forward_layers_stay_in_float_or_are_smoothed(tmp_path):
    """Three units of each layer are 300 times as large, and are read with as much less: the model stays the same."""
    live = live_model("t5", scale=1.0)
    question = batch(live, TEXTS)
    expected = answer(live, question)
    least = rounding_error(live, question, expected)
    with torch.no_grad():
        for name, module in live.model.named_modules():
            if name.endswith("DenseReluDense"):
                module.wi.weight[:3] *= 300
                module.wo.weight[:, :3] /= 300
    torch.testing.assert_close(answer(live, question), expected, atol=1e-5, rtol=1e-4)
    rows = Calibration(lambda: _Rows(live, TEXTS * 4), rows=8, batch_size=4)
    setting = Context(batch(live, TEXTS), TrainSettings(), None, tmp_path, rows)
    floating = OnnxFloat()(Variant(live), setting)

    def lost(**arguments) -> float:
        variant = OnnxInt8(**arguments)(floating, setting)
        assert ("wo stays in float" in variant.notes.get("caution", "")) == (not arguments)
        return float((answer(variant.model, question) - expected).norm() / least)

    assert lost(exclude=[]) > 10
    assert lost() < TWICE
    assert lost(smooth=0.5) < TWICE


@pytest.mark.parametrize("exported_one", ENCODER_DECODERS, indirect=True)
def test_the_task_lets_an_export_write_its_texts(exported_one):
    _, live, exported = exported_one
    question = batch(live, TEXTS)
    assert live.task.answer(exported, question)["text"] == live.task.answer(live, question)["text"]


def test_an_export_without_keys_and_values_answers_and_refuses_to_write(tmp_path):
    live = live_model("llama")
    exported = OnnxFloat(cache=False)(Variant(live), context(live, tmp_path)).model
    question = batch(live, TEXTS)
    torch.testing.assert_close(answer(exported, question), answer(live, question), rtol=1e-3, atol=1e-3)
    with pytest.raises(UserError, match="writes no text; export it with cache=true"):
        _ = exported.writer


class _Rows:
    """Rows to calibrate with."""

    def __init__(self, live: LiveModel, texts: list[str]) -> None:
        self.live, self.texts = live, texts

    def __len__(self) -> int:
        return len(self.texts)

    def batch(self, indices) -> Batch:
        return batch(self.live, [self.texts[index] for index in indices])


@pytest.mark.parametrize("arguments", [{"method": "minmax"}, {"method": "entropy"}, {"method": "percentile"}])
@pytest.mark.parametrize("name", ["llama", "bart"])
def test_static_ranges_come_from_calibration_rows(name, arguments, tmp_path):
    live = live_model(name)
    rows = Calibration(lambda: _Rows(live, TEXTS * 4), rows=8, batch_size=4)
    setting = Context(batch(live, TEXTS), TrainSettings(), None, tmp_path, rows)
    small = OnnxInt8(activations="static", **arguments)(Variant(live), setting).model
    question = batch(live, TEXTS)
    expected = answer(live, question)
    assert (answer(small, question) - expected).norm() < 0.35 * expected.norm()


def test_no_calibration_rows_is_one_line(tmp_path):
    live = live_model("llama")
    rows = Calibration(lambda: _Rows(live, []))
    setting = Context(batch(live, TEXTS), TrainSettings(), None, tmp_path, rows)
    with pytest.raises(UserError, match=r"^compress\.calibration_rows: there are no rows to calibrate with"):
        OnnxInt8(activations="static")(Variant(live), setting)
