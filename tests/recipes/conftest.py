"""A folder where the hub's names are those of tiny local models and data."""

from __future__ import annotations

import csv
import random
from pathlib import Path

import datasets
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    BertTokenizer,
    DistilBertConfig,
    DistilBertForMaskedLM,
)

from tests.samples import write_rows
from tests.server import FakeServer
from tests.tiny import BAD, GOOD, LABELS, llama, rows, tokenizer, write_jsonl

GLUE = """\
---
configs:
  - config_name: sst2
    data_files:
      - {split: train, path: sst2/train.parquet}
      - {split: validation, path: sst2/validation.parquet}
---
"""


def word_piece() -> BertTokenizer:
    words = sorted({word for text in GOOD + BAD for word in text.split()})
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    return BertTokenizer(vocab={token: index for index, token in enumerate(tokens)})


def encoder(kind: type, config: type, folder: Path, **settings: int) -> None:
    torch.manual_seed(0)
    ours = word_piece()
    kind(config(vocab_size=len(ours), pad_token_id=0, **settings)).save_pretrained(folder)
    ours.save_pretrained(folder)


def decoder(folder: Path) -> None:
    ours = tokenizer()
    ours.pad_token = ours.eos_token
    model = llama(layers=8)
    model.config.pad_token_id = ours.eos_token_id
    model.config.max_position_embeddings = 512
    model.save_pretrained(folder)
    ours.save_pretrained(folder)


def hub(folder: Path) -> None:
    bert = {"hidden_size": 16, "num_hidden_layers": 6, "num_attention_heads": 2, "intermediate_size": 32}
    encoder(BertForMaskedLM, BertConfig, folder / "google-bert/bert-base-uncased", **bert)
    distilbert = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32}
    encoder(DistilBertForMaskedLM, DistilBertConfig, folder / "distilbert/distilbert-base-uncased", **distilbert)
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    bart = {"d_model": 16, "encoder_layers": 6, "decoder_layers": 6, "decoder_start_token_id": 3, "eos_token_id": 3}
    encoder(BartForConditionalGeneration, BartConfig, folder / "facebook/bart-base", bos_token_id=2, **bart, **heads)
    decoder(folder / "HuggingFaceTB/SmolLM2-360M-Instruct")
    glue = folder / "nyu-mll/glue"
    (glue / "sst2").mkdir(parents=True)
    (glue / "README.md").write_text(GLUE, encoding="utf-8")
    features = Features({"sentence": Value("string"), "label": ClassLabel(names=["negative", "positive"])})
    for split, count in (("train", 40), ("validation", 16)):
        made = rows(count)
        columns = {"sentence": [r["text"] for r in made], "label": [LABELS.index(r["label"]) for r in made]}
        Dataset.from_dict(columns, features=features).to_parquet(glue / f"sst2/{split}.parquet")


def own_data(folder: Path) -> None:
    """The files that a user would bring."""
    for split, count in (("train", 40), ("valid", 16)):
        made = rows(count)
        table = [{**row, "review": row["text"], "stars": 1 + LABELS.index(row["label"])} for row in made]
        with (folder / f"{split}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(table[0]))
            writer.writeheader()
            writer.writerows(table)
    random.seed(0)
    texts = "".join(f"{row['text']}\n" for row in rows(60, seed=3))
    (folder / "texts.csv").write_text(f"text\n{texts}", encoding="utf-8")
    for name, task in (
        ("pairs", "regression"),
        ("topics", "multi_label"),
        ("tags", "token_classification"),
        ("questions", "question_answering"),
    ):
        write_rows(folder / name, task)
    for name, count in (("instructions", 24), ("valid", 8)):
        made = rows(count)
        write_jsonl(folder / f"{name}.jsonl", [{"prompt": r["text"], "completion": r["label"]} for r in made])
    made = rows(16)
    write_jsonl(folder / "sources.jsonl", [{"source": row["text"], "target": row["label"]} for row in made])
    turns = [("text", "user"), ("label", "assistant")]
    chats = [{"messages": [{"role": role, "content": row[name]} for name, role in turns]} for row in made]
    write_jsonl(folder / "chats.jsonl", chats)


@pytest.fixture(scope="session")
def stocked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stocked")
    hub(folder)
    own_data(folder)
    return folder


@pytest.fixture(scope="module")
def desk(stocked: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An own folder with everything stocked in reach, and the working directory."""
    folder = tmp_path_factory.mktemp("desk")
    for path in stocked.iterdir():
        (folder / path.name).symlink_to(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
        patch.setenv("HF_DATASETS_CACHE", str(folder / "cache"))
        patch.setenv("FAKE_SERVER", FakeServer().url)
        yield folder
