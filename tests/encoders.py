"""Tiny encoders, tokenizers and batches for the tasks of encoders."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch.nn import functional
from transformers import BertConfig, PreTrainedTokenizerFast

from distillkit.losses.objective import Objective
from distillkit.models.live import LiveModel
from distillkit.models.teachers import FrozenModel
from distillkit.signals import Batch
from distillkit.tasks.base import Task

SIZES = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 256}


def word_piece(words: list[str]) -> PreTrainedTokenizerFast:
    """BERT's kind of tokenizer: [CLS] a [SEP] b [SEP]; a word that is not listed is cut into letters."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,?-"
    listed = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters, *(f"##{letter}" for letter in letters), *words]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(listed))}
    made = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")]
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1", special_tokens=ends
    )
    named = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep")}
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=made, model_input_names=inputs, **named)


def encoder(task: Task, tokenizer: Any, labels: list[str] | None = None, layers: int = 2, seed: int = 0) -> LiveModel:
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(tokenizer), num_hidden_layers=layers, pad_token_id=tokenizer.pad_token_id, **SIZES
    )
    task.prepare(config, labels, trained=False, key="student")
    return LiveModel(task.auto_class().from_config(config), tokenizer, task).eval()


def rows_of(columns: dict[str, list]) -> list[dict[str, Any]]:
    kept = {name: values for name, values in columns.items() if name != "bad"}
    return [dict(zip(kept, values, strict=True)) for values in zip(*kept.values(), strict=True)]


def collate(task: Task, tokenizer: Any, names: list[str] | None = None, /, **columns: list) -> Batch:
    ids = None if names is None else {name: index for index, name in enumerate(names)}
    return task.collate(rows_of(task.encode(columns, tokenizer, ids)), tokenizer)


def padded(batch: Batch, columns: int) -> Batch:
    """Add padding on the right of every row."""
    inputs = {name: functional.pad(tensor, (0, columns)) for name, tensor in batch.inputs.items()}
    counted = functional.pad(batch.counted, (0, columns)) if batch.counted.ndim == 2 else batch.counted
    return replace(batch, inputs=inputs, counted=counted)


@torch.no_grad()
def value(objective: Objective, student: LiveModel, teacher: FrozenModel, batch: Batch) -> float:
    """The objective on one batch."""
    counts = objective.counts(batch)
    shown = student(batch, objective.wanted_of_student)
    return objective(shown, teacher(batch), batch, counts)[0].item()
