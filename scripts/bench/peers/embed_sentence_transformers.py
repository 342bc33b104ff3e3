"""Embeddings with sentence-transformers: the student learns the teacher's vectors by `MSELoss`. JOB OUTPUT SEED."""

import sys

from clock import clock
from datasets import load_dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.losses import MSELoss
from sentence_transformers.models import Normalize, Pooling, Transformer
from torch.utils.data import BatchSampler
from transformers.trainer_pt_utils import LengthGroupedSampler


def load(path: str) -> SentenceTransformer:
    """Load an encoder whose embedding is the normalised mean of its tokens."""
    body = Transformer(path, max_seq_length=128)
    return SentenceTransformer(modules=[body, Pooling(body.get_word_embedding_dimension(), "mean"), Normalize()])


def by_length(dataset, batch_size, **_):
    """Let rows of like length share a batch, which none of the library's own samplers does."""
    lengths = [len(text) for text in dataset["text"]]
    return BatchSampler(LengthGroupedSampler(batch_size, lengths=lengths), batch_size, drop_last=False)


def main(job: str, output: str, seed: str) -> None:
    """Distil."""
    student, teacher = load(f"{job}/student"), load(f"{job}/teacher")
    rows = load_dataset("json", data_files=f"{job}/train.jsonl", split="train")
    settings = SentenceTransformerTrainingArguments(
        output_dir=output,
        num_train_epochs=1,
        per_device_train_batch_size=32,
        learning_rate=1e-4,
        weight_decay=0.01,
        batch_sampler=by_length,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=int(seed),
        use_cpu=True,
    )
    with clock(output):
        taught = teacher.encode(rows["text"], batch_size=32, show_progress_bar=False)
        rows = rows.add_column("label", taught.tolist())
        trainer = SentenceTransformerTrainer(student, settings, train_dataset=rows, loss=MSELoss(student))
        trainer.train()
    student.save_pretrained(f"{output}/model")


if __name__ == "__main__":
    main(*sys.argv[1:])
