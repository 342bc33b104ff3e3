"""Classification with plain transformers: a `Trainer` with a loss of one's own. JOB OUTPUT SEED."""

import sys

import torch
from clock import clock
from datasets import load_dataset
from torch.nn.functional import kl_div, log_softmax
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

TEMPERATURE, ALPHA = 2.0, 0.5


class Distiller(Trainer):
    """A trainer whose student also learns from a teacher."""

    def __init__(self, *args, teacher, **kwargs):
        super().__init__(*args, **kwargs)
        self.teacher = teacher.eval().requires_grad_(False)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):  # noqa: ARG002
        """Return α · cross-entropy + (1 − α) · T² · KL."""
        outputs = model(**inputs)
        with torch.no_grad():
            taught = self.teacher(**{name: value for name, value in inputs.items() if name != "labels"}).logits
        log_q = log_softmax(outputs.logits / TEMPERATURE, dim=-1)
        log_p = log_softmax(taught / TEMPERATURE, dim=-1)
        soft = kl_div(log_q, log_p, log_target=True, reduction="batchmean") * TEMPERATURE**2
        loss = ALPHA * outputs.loss + (1 - ALPHA) * soft
        return (loss, outputs) if return_outputs else loss


def main(job: str, output: str, seed: str) -> None:
    """Distil."""
    tokenizer = AutoTokenizer.from_pretrained(f"{job}/student")
    student = AutoModelForSequenceClassification.from_pretrained(f"{job}/student")
    teacher = AutoModelForSequenceClassification.from_pretrained(f"{job}/teacher")
    rows = load_dataset("json", data_files=f"{job}/train.jsonl", split="train")

    def encode(batch):
        encoded = tokenizer(batch["text"], truncation=True, max_length=128)
        return {**encoded, "labels": [student.config.label2id[name] for name in batch["label"]]}

    rows = rows.map(encode, batched=True, remove_columns=rows.column_names)
    settings = TrainingArguments(
        output_dir=output,
        num_train_epochs=1,
        per_device_train_batch_size=32,
        learning_rate=1e-4,
        weight_decay=0.01,
        train_sampling_strategy="group_by_length",
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=int(seed),
        use_cpu=True,
    )
    trainer = Distiller(
        student,
        settings,
        teacher=teacher,
        train_dataset=rows,
        data_collator=DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
    )
    with clock(output):
        trainer.train()
    trainer.save_model(f"{output}/model")


if __name__ == "__main__":
    main(*sys.argv[1:])
