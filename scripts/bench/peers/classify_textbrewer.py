"""Classification with TextBrewer: two adaptors and a `GeneralDistiller`. JOB OUTPUT SEED."""

import sys

import torch
from clock import clock
from datasets import load_dataset
from textbrewer import DistillationConfig, GeneralDistiller, TrainingConfig
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    get_linear_schedule_with_warmup,
)
from transformers.trainer_pt_utils import LengthGroupedSampler

TEMPERATURE, ALPHA = 2.0, 0.5


def adaptor(batch, outputs):  # noqa: ARG001
    """Tell TextBrewer what a model's outputs are."""
    return {"logits": outputs.logits, "losses": outputs.loss}


def main(job: str, output: str, seed: str) -> None:
    """Distil."""
    torch.manual_seed(int(seed))
    tokenizer = AutoTokenizer.from_pretrained(f"{job}/student")
    student = AutoModelForSequenceClassification.from_pretrained(f"{job}/student")
    teacher = AutoModelForSequenceClassification.from_pretrained(f"{job}/teacher")
    rows = load_dataset("json", data_files=f"{job}/train.jsonl", split="train")

    def encode(batch):
        encoded = tokenizer(batch["text"], truncation=True, max_length=128)
        return {**encoded, "labels": [student.config.label2id[name] for name in batch["label"]]}

    rows = rows.map(encode, batched=True, remove_columns=rows.column_names)
    pad = DataCollatorWithPadding(tokenizer)
    lengths = [len(ids) for ids in rows["input_ids"]]
    loader = DataLoader(
        rows,
        batch_size=32,
        sampler=LengthGroupedSampler(32, lengths=lengths),
        collate_fn=lambda batch: dict(pad(batch)),
    )
    decayed = [weight for weight in student.parameters() if weight.ndim > 1]
    others = [weight for weight in student.parameters() if weight.ndim == 1]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-4, fused=True)
    # Their soft loss has no factor T²: it goes into the weight.
    distilled = DistillationConfig(
        temperature=TEMPERATURE, hard_label_weight=ALPHA, kd_loss_weight=(1 - ALPHA) * TEMPERATURE**2
    )
    training = TrainingConfig(device="cpu", output_dir=f"{output}/checkpoints")
    distiller = GeneralDistiller(training, distilled, teacher, student, adaptor, adaptor)
    with clock(output), distiller:
        distiller.train(
            optimizer,
            loader,
            num_epochs=1,
            scheduler_class=get_linear_schedule_with_warmup,
            scheduler_args={"num_warmup_steps": 0, "num_training_steps": len(loader)},
            max_grad_norm=1.0,
        )
    student.save_pretrained(f"{output}/model")
    tokenizer.save_pretrained(f"{output}/model")


if __name__ == "__main__":
    main(*sys.argv[1:])
