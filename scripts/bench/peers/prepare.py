"""Make what all peers start from: rows, teachers, and students whose first weights are the same for everyone.

`peers.py` calls it once. Of a pretrained encoder it fine-tunes a classifier, takes three of its layers as a student
(with the head, for labels; without, for embeddings), and trains a small language model with a large vocabulary.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer, LlamaConfig, LlamaForCausalLM

TEACHER_ROWS, TEACHER_TEXTS = 3_200, 80
LENGTH = 512
LAYERS = (0, 2, 5)


def prepare(job: Path, base: str, tokenizer: str, sst2: Path, wikitext: Path, rows: int, texts: int) -> None:
    """Write the folders `classify`, `embed` and `language` of a job.

    Args:
        job: Where to.
        base: Folder or hub id of an encoder of six layers (BERT's architecture) that embeds sentences.
        tokenizer: Folder or hub id of a tokenizer with a large vocabulary.
        sst2: A folder with train.jsonl and validation.jsonl, of `text` and `label`.
        wikitext: A folder with train.jsonl and validation.jsonl, of `text`.
        rows: That the encoders' students learn from.
        texts: That the language models' students learn from; half as many are held out.
    """
    classify(job / "classify", base, sst2, rows)
    embed(job / "embed", base, job / "classify")
    language(job / "language", tokenizer, wikitext, texts)


def classify(folder: Path, base: str, sst2: Path, count: int) -> None:
    """Fine-tune the teacher and cut the student out of it."""
    rows = read(sst2 / "train.jsonl", max(TEACHER_ROWS, count))
    write(folder / "teacher.jsonl", rows[:TEACHER_ROWS])
    write(folder / "train.jsonl", rows[:count])
    write(folder / "validation.jsonl", read(sst2 / "validation.jsonl"))
    train(folder, "sequence_classification", folder / "teacher.jsonl", base, "train.batch_size=32", "train.epochs=1")
    teacher = AutoModelForSequenceClassification.from_pretrained(folder / "teacher")
    save(teacher, teacher.bert, folder / "teacher", folder / "student")


def embed(folder: Path, base: str, texts: Path) -> None:
    """Save the encoder as it is, and its layers as a student; the rows are those of the classifier, unlabelled."""
    for split in ("train", "validation"):
        write(folder / f"{split}.jsonl", ({"text": row["text"]} for row in read(texts / f"{split}.jsonl")))
    teacher = AutoModel.from_pretrained(base)
    teacher.save_pretrained(folder / "teacher")
    AutoTokenizer.from_pretrained(base).save_pretrained(folder / "teacher")
    save(teacher, teacher, folder / "teacher", folder / "student")


def save(model: Any, body: Any, origin: Path, folder: Path) -> None:
    """Keep some layers of a model, and save it with its origin's tokenizer."""
    body.encoder.layer = torch.nn.ModuleList(body.encoder.layer[index] for index in LAYERS)
    model.config.num_hidden_layers = len(LAYERS)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(origin).save_pretrained(folder)


def language(folder: Path, name: str, wikitext: Path, count: int) -> None:
    """Train a teacher shortly; rows are texts of exactly as many tokens as fit, with the end-of-text token."""
    tokenizer = AutoTokenizer.from_pretrained(name)
    rows = pieces(tokenizer, wikitext / "train.jsonl", count + TEACHER_TEXTS)
    write(folder / "train.jsonl", rows[:count])
    write(folder / "teacher.jsonl", rows[count:])
    write(folder / "validation.jsonl", pieces(tokenizer, wikitext / "validation.jsonl", count // 2))
    for model, layers in (("start", 6), ("student", 4)):
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=256,
            intermediate_size=688,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=LENGTH,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        LlamaForCausalLM(config).save_pretrained(folder / model)
        tokenizer.save_pretrained(folder / model)
    settings = ("train.batch_size=4", "train.epochs=1", "train.learning_rate=1e-3", f"task.max_length={LENGTH}")
    train(folder, "causal_lm", folder / "teacher.jsonl", folder / "start", *settings)


def pieces(tokenizer: Any, path: Path, count: int) -> list[dict[str, str]]:
    """Cut texts into pieces that are encoded as `LENGTH` − 1 tokens again."""
    found: list[dict[str, str]] = []
    for row in read(path):
        ids = tokenizer(row["text"])["input_ids"]
        for start in range(0, len(ids) - LENGTH, LENGTH):
            text = tokenizer.decode(ids[start : start + LENGTH - 1])
            if len(tokenizer(text)["input_ids"]) == LENGTH - 1:
                found.append({"text": text})
            if len(found) == count:
                return found
    raise SystemExit(f"{path} has text for {len(found)} rows of {LENGTH} tokens, {count} are needed")


def train(folder: Path, task: str, rows: Path, start: str | Path, *settings: str) -> None:
    """Fine-tune `folder/teacher` with distillkit."""
    argv = ["train", f"task={task}", f"dataset.train={rows}", f"student.path={start}", "loss=hard", *settings]
    argv += ["train.checkpoint_every=null", f"output_dir={folder / 'run'}"]
    subprocess.run([sys.executable, "-m", "distillkit", *argv], check=True)
    (folder / "run" / "model").rename(folder / "teacher")


def read(path: Path, limit: int | None = None) -> list[dict[str, Any]]:
    """Read the first rows of a file of JSON lines."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines[:limit]]


def write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write a file of JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
