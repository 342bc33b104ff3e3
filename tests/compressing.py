"""Tiny models of many families, whose random weights matter, and what compression steps are given."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
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
    T5Config,
    T5ForConditionalGeneration,
)

from distillkit.compression.calibration import Calibration
from distillkit.compression.variant import Context
from distillkit.data.encode import Encoded
from distillkit.models.live import LiveModel
from distillkit.models.tokenizers import ByteLevelBPE
from distillkit.schema import Config, EvaluateSettings, TrainSettings
from distillkit.signals import Batch
from distillkit.tasks.causal_lm import CausalLM
from distillkit.tasks.seq2seq_lm import Seq2SeqLM
from distillkit.tasks.sequence_classification import SequenceClassification

VOCABULARY = 258
SHARED: dict[str, Any] = {"vocab_size": VOCABULARY, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 0}
SIZES = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 32}
TEXTS = ["a first text", "and one more", "the third of them is longer", "four"]


def family(name: str, **changes: Any) -> LiveModel:
    """Make a model of a family with a tokenizer that knows bytes."""
    torch.manual_seed(0)
    model, task = {
        "bert": lambda: (BertForSequenceClassification(BertConfig(**SHARED | SIZES | changes)), _classes()),
        "roberta": lambda: (RobertaForSequenceClassification(RobertaConfig(**SHARED | SIZES | changes)), _classes()),
        "distilbert": lambda: (
            DistilBertForSequenceClassification(
                DistilBertConfig(**SHARED | {"dim": 16, "n_layers": 4, "n_heads": 4, "hidden_dim": 32} | changes)
            ),
            _classes(),
        ),
        "llama": lambda: (
            LlamaForCausalLM(LlamaConfig(**SHARED | SIZES | {"num_key_value_heads": 2} | changes)),
            CausalLM(max_length=32),
        ),
        "qwen2": lambda: (
            Qwen2ForCausalLM(Qwen2Config(**SHARED | SIZES | {"num_key_value_heads": 2} | changes)),
            CausalLM(max_length=32),
        ),
        "gpt2": lambda: (
            GPT2LMHeadModel(GPT2Config(**SHARED | {"n_embd": 16, "n_layer": 4, "n_head": 4} | changes)),
            CausalLM(max_length=32),
        ),
        "t5": lambda: (
            T5ForConditionalGeneration(
                T5Config(
                    **SHARED
                    | {"d_model": 16, "num_layers": 4, "num_heads": 4, "d_kv": 4, "d_ff": 32}
                    | {"decoder_start_token_id": 1}
                    | changes
                )
            ),
            Seq2SeqLM(32, 32),
        ),
        "bart": lambda: (
            BartForConditionalGeneration(
                BartConfig(
                    **SHARED
                    | {"d_model": 16, "encoder_layers": 4, "decoder_layers": 4, "decoder_start_token_id": 0}
                    | {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "forced_eos_token_id": 0}
                    | {"encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 64}
                    | changes
                )
            ),
            Seq2SeqLM(32, 32),
        ),
    }[name]()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.3)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return LiveModel(model.eval(), ByteLevelBPE(VOCABULARY).train([]), task)


def _classes() -> SequenceClassification:
    return SequenceClassification(max_length=32)


def copied(live: LiveModel) -> LiveModel:
    return LiveModel(copy.deepcopy(live.model), live.tokenizer, live.task)


def batch(live: LiveModel, texts: list[str] = TEXTS) -> Batch:
    """Encode and collate texts for a model."""
    columns = {"source": texts, "target": texts[::-1]} if isinstance(live.task, Seq2SeqLM) else {"text": texts}
    rows = live.task.encode(columns, live.tokenizer, None)
    return live.task.collate(
        [dict(zip(rows, row, strict=True)) for row in zip(*rows.values(), strict=True)], live.tokenizer
    )


def logits(live: LiveModel, asked: Batch | None = None) -> torch.Tensor:
    with torch.no_grad():
        answer = live.eval()(batch(live) if asked is None else asked).logits
    assert answer is not None
    return answer.rows(0, len(answer)).float()


class Fixed(Calibration):
    """Calibration with given batches."""

    def __init__(self, *batches: Batch) -> None:
        super().__init__(_nothing)
        self.__dict__["batches"] = list(batches)


def _nothing() -> Encoded:
    raise AssertionError("nothing is to be loaded")


def context(live: LiveModel, folder: Path, retrain: Any = None, **settings: Any) -> Context:
    example = batch(live)
    return Context(example, TrainSettings(**settings), retrain, folder, Fixed(example))


STEPS = {
    "prune": {"_target_": "distillkit.compression.prune.MagnitudePrune", "sparsity": 0.5},
    "retrain": {"_target_": "distillkit.compression.retrain.Retrain", "train": {"max_steps": 4, "learning_rate": 1e-2}},
    "int8": {"_target_": "distillkit.compression.int8.OnnxInt8"},
}


def command(folder: Path) -> Config:
    """Make what `compress` is started with: rows and a tiny classifier in a folder."""
    torch.manual_seed(0)
    rows = [{"text": f"{word} number {n}", "label": word} for n in range(12) for word in ("good", "bad")]
    for split in ("train", "validation"):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = BertForSequenceClassification(
        BertConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            vocab_size=258,
            pad_token_id=1,
            id2label={0: "bad", 1: "good"},
            label2id={"bad": 0, "good": 1},
        )
    )
    LiveModel(model, ByteLevelBPE(258).train([]), SequenceClassification(max_length=32)).save(folder / "start")
    config = Config(name="tiny", output_dir=str(folder / "out"), evaluate=EvaluateSettings(speed=False, resamples=100))
    config.task = {"_target_": "distillkit.tasks.sequence_classification.SequenceClassification", "max_length": 32}
    config.dataset = {
        "_target_": "distillkit.data.files.FileDataset",
        "train": str(folder / "train.jsonl"),
        "validation": str(folder / "validation.jsonl"),
    }
    config.teacher = {"_target_": "distillkit.models.teachers.LiveTeacher", "path": str(folder / "start")}
    config.loss = {
        "_target_": "distillkit.losses.objective.Objective",
        "terms": {"kd": {"weight": 1.0, "loss": {"_target_": "distillkit.losses.divergences.ForwardKL"}}},
    }
    config.compress.model = str(folder / "start")
    config.compress.check_reload = False
    config.compress.steps = dict(STEPS)
    return config
