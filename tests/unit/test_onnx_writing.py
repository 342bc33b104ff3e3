"""Exports with keys and values: they answer and write as transformers do."""

from __future__ import annotations

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


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("name", [*DECODERS, *ENCODER_DECODERS])
def test_an_export_writes_what_transformers_write(name, beams, tmp_path):
    live = live_model(name)
    exported = OnnxFloat()(Variant(live), context(live, tmp_path)).model
    assert exported.graph.caches
    question = batch(live, [f"number {n}" * n for n in range(1, 4)])
    names = ("input_ids", "attention_mask")
    inputs = padded_left(question) if name in DECODERS else {key: question.inputs[key] for key in names}
    how = {"max_new_tokens": 12, "num_beams": beams, "do_sample": False, "pad_token_id": 1}
    expected, written = live.model.generate(**inputs, **how), exported.writer.generate(**inputs, **how)
    assert torch.equal(written, expected)
    assert len(expected.unique()) > 4


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_an_encoder_decoder_answers_alike_and_its_int8_loads_again(name, tmp_path):
    live = live_model(name, scale=1.0)
    floating = OnnxFloat()(Variant(live), context(live, tmp_path))
    question = batch(live, ["one", "two texts of", "rather different lengths, aren't they"])
    expected = answer(live, question)
    torch.testing.assert_close(answer(floating.model, question), expected, rtol=1e-3, atol=1e-3)
    assert floating.model.count_parameters() == live.count_parameters()

    small = OnnxInt8()(floating, context(live, tmp_path)).model
    assert (answer(small, question) - expected).norm() < 0.1 * expected.norm()
    small.save(tmp_path / "saved")
    assert is_onnx(str(tmp_path / "saved"))
    again = OnnxModel.load(tmp_path / "saved", live.task)
    assert torch.equal(answer(again, question), answer(small, question))
    assert sum(path.stat().st_size for path in (tmp_path / "saved").glob("*.onnx")) < 0.5 * sum(
        path.stat().st_size for path in floating.model.folder.glob("*.onnx")
    )


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_the_task_lets_an_export_write_its_texts(name, tmp_path):
    live = live_model(name)
    exported = OnnxFloat()(Variant(live), context(live, tmp_path)).model
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
