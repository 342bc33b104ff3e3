"""Tiny models, tokenizers and data, made on the fly."""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch
from accelerate import Accelerator
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from distillkit.data.encode import Encoded, encode
from distillkit.data.files import FileDataset
from distillkit.evaluation.evaluate import evaluate
from distillkit.losses.divergences import ForwardKL
from distillkit.losses.objective import Objective
from distillkit.losses.task import CrossEntropy
from distillkit.models.live import LiveModel
from distillkit.models.teachers import FrozenModel
from distillkit.models.tokenizers import ByteLevelBPE
from distillkit.schema import TrainSettings
from distillkit.tasks.base import Task
from distillkit.tasks.causal_lm import CausalLM
from distillkit.tasks.sequence_classification import SequenceClassification
from distillkit.training.loop import fit
from distillkit.training.records import Records
from distillkit.training.run import FitResult, Run

GOOD = ["a fine and happy day", "lovely work", "what a joy to see this again and again", "great", "so very good"]
BAD = ["a sad and grey day", "awful work", "what a pain to see this again and again", "terrible", "so very bad"]
LABELS = ["bad", "good"]


def tokenizer(vocab_size: int = 320) -> PreTrainedTokenizerFast:
    return ByteLevelBPE(vocab_size=vocab_size).train(GOOD + BAD)


def bert(
    layers: int = 2, hidden: int = 16, seed: int = 0, labels: int = 2, dropout: float = 0.0
) -> BertForSequenceClassification:
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=320,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=2 * hidden,
        max_position_embeddings=128,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        num_labels=labels,
        pad_token_id=1,
    )
    if labels == 2:
        config.id2label, config.label2id = dict(enumerate(LABELS)), {name: i for i, name in enumerate(LABELS)}
    return BertForSequenceClassification(config)


def llama(layers: int = 2, hidden: int = 16, seed: int = 0, vocab_size: int = 320) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=2 * hidden,
        max_position_embeddings=128,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=1,
    )
    return LlamaForCausalLM(config)


def classifier(layers: int = 2, seed: int = 0, dropout: float = 0.0) -> LiveModel:
    return LiveModel(bert(layers, seed=seed, dropout=dropout), tokenizer(), SequenceClassification(max_length=32))


def language_model(layers: int = 2, seed: int = 0) -> LiveModel:
    return LiveModel(llama(layers, seed=seed), tokenizer(), CausalLM(max_length=32))


def save(model: LiveModel, folder: Path) -> Path:
    model.save(folder)
    return folder


def rows(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Make sentences of ragged lengths whose words tell the label."""
    source = random.Random(seed)
    made = []
    for _ in range(count):
        label = source.randrange(2)
        words = [source.choice(GOOD if label else BAD) for _ in range(source.randint(1, 4))]
        made.append({"text": " ".join(words), "label": LABELS[label]})
    return made


def write_jsonl(path: Path, lines: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def data_files(folder: Path, count: int = 40) -> dict[str, str]:
    return {
        split: str(write_jsonl(folder / f"{split}.jsonl", rows(size, seed)))
        for split, size, seed in (("train", count, 1), ("validation", 20, 2), ("test", 20, 3))
    }


def encoded(folder: Path, task: Task, count: int = 40, split: str = "train") -> Encoded:
    loaded = FileDataset(**data_files(folder, count), labels=LABELS).load()
    return encode(loaded, split, task, tokenizer(), LABELS if task.has_classes else None)


def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


def distillation(alpha: float = 0.5, temperature: float = 2.0) -> Objective:
    return Objective(
        {
            "hard": {"weight": alpha, "loss": CrossEntropy()},
            "kd": {"weight": 1 - alpha, "loss": ForwardKL(temperature)},
        }
    )


def training(folder: Path, student: LiveModel, teacher: LiveModel, data: Encoded, **settings) -> Run:
    """A distillation run that is ready for `fit`; it evaluates on the training rows."""
    ours = accelerator()
    torch.manual_seed(0)

    def quality(model: LiveModel) -> dict[str, float]:
        return evaluate(model, model.task, data, 16, ours).metrics

    return Run(
        student=student,
        teacher=FrozenModel(teacher),
        objective=distillation(),
        data=data,
        settings=TrainSettings(**{"batch_size": 8, "learning_rate": 1e-2, "log_every": 1} | settings),
        accelerator=ours,
        records=Records(folder / "metrics.jsonl", ours),
        folder=folder / "checkpoints",
        digest="a config",
        evaluate=quality,
        best_metric=student.task.best_metric,
    )


def train(folder: Path, student: LiveModel, teacher: LiveModel, data: Encoded, **settings) -> FitResult:
    return fit(training(folder, student, teacher, data, **settings))


def events(folder: Path) -> list[dict]:
    """The lines of metrics.jsonl without the clock."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]
