"""A language model with plain transformers: a `Trainer` with a loss of one's own. JOB OUTPUT SEED."""

import sys

import torch
from clock import clock
from datasets import load_dataset
from torch.nn.functional import kl_div, log_softmax
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments, default_data_collator


class Distiller(Trainer):
    """A trainer whose student learns from a teacher."""

    def __init__(self, *args, teacher, **kwargs):
        super().__init__(*args, **kwargs)
        self.teacher = teacher.eval().requires_grad_(False)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):  # noqa: ARG002
        """Return KL(teacher ‖ student), the mean over the predicted tokens."""
        outputs = model(**inputs, use_cache=False)
        with torch.no_grad():
            taught = self.teacher(**inputs, use_cache=False).logits[:, :-1]
            log_p = log_softmax(taught.flatten(0, 1), dim=-1)
        log_q = log_softmax(outputs.logits[:, :-1].flatten(0, 1), dim=-1)
        loss = kl_div(log_q, log_p, log_target=True, reduction="batchmean")
        return (loss, outputs) if return_outputs else loss


def main(job: str, output: str, seed: str) -> None:
    """Distil."""
    tokenizer = AutoTokenizer.from_pretrained(f"{job}/student")
    student = AutoModelForCausalLM.from_pretrained(f"{job}/student")
    teacher = AutoModelForCausalLM.from_pretrained(f"{job}/teacher")
    rows = load_dataset("json", data_files=f"{job}/train.jsonl", split="train")

    def encode(batch):
        return tokenizer([text + tokenizer.eos_token for text in batch["text"]], truncation=True, max_length=512)

    rows = rows.map(encode, batched=True, remove_columns=rows.column_names)
    settings = TrainingArguments(
        output_dir=output,
        num_train_epochs=1,
        per_device_train_batch_size=4,
        learning_rate=1e-3,
        weight_decay=0.01,
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
        data_collator=default_data_collator,
        processing_class=tokenizer,
    )
    with clock(output):
        trainer.train()
    trainer.save_model(f"{output}/model")


if __name__ == "__main__":
    main(*sys.argv[1:])
