"""Say how near the embeddings of models are to a teacher's, by cosine. FILE teacher=FOLDER NAME=FOLDER …."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoModel, AutoTokenizer


@torch.inference_mode()
def embed(path: str, texts: list[str]) -> Tensor:
    """Return the normalised mean of the last hidden states `[texts, width]`."""
    tokenizer, model = AutoTokenizer.from_pretrained(path), AutoModel.from_pretrained(path).eval()
    vectors = []
    for start in range(0, len(texts), 32):
        batch = tokenizer(texts[start : start + 32], padding=True, truncation=True, max_length=128, return_tensors="pt")
        mask = batch["attention_mask"].unsqueeze(2)
        vectors.append((model(**batch).last_hidden_state * mask).sum(dim=1) / mask.sum(dim=1))
    return normalize(torch.cat(vectors), dim=1)


def main(rows: str, *models: str) -> None:
    """Print JSON: name → cosine."""
    texts = [json.loads(line)["text"] for line in Path(rows).read_text(encoding="utf-8").splitlines()]
    vectors = {name: embed(path, texts) for name, path in (model.split("=", 1) for model in models)}
    taught = vectors["teacher"]
    cosines = {name: (found * taught).sum(dim=1).mean().item() for name, found in vectors.items()}
    print(json.dumps({name: {"cosine": cosine} for name, cosine in cosines.items()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
