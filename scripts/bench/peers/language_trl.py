"""A language model with TRL: `GKDTrainer` on the texts of the data (lmbda = 0), forward KL. JOB OUTPUT SEED."""

import sys

from clock import clock
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, default_data_collator
from trl.experimental.gkd import GKDConfig, GKDTrainer


def main(job: str, output: str, seed: str) -> None:
    """Distil."""
    tokenizer = AutoTokenizer.from_pretrained(f"{job}/student")
    student = AutoModelForCausalLM.from_pretrained(f"{job}/student")
    teacher = AutoModelForCausalLM.from_pretrained(f"{job}/teacher")
    rows = load_dataset("json", data_files=f"{job}/train.jsonl", split="train")

    def encode(batch):
        texts = [text + tokenizer.eos_token for text in batch["text"]]
        encoded = tokenizer(texts, truncation=True, max_length=512)
        return {**encoded, "labels": encoded["input_ids"]}

    rows = rows.map(encode, batched=True, remove_columns=rows.column_names)
    settings = GKDConfig(
        output_dir=output,
        lmbda=0.0,
        beta=0.0,
        temperature=1.0,
        num_train_epochs=1,
        per_device_train_batch_size=4,
        learning_rate=1e-3,
        weight_decay=0.01,
        gradient_checkpointing=False,
        bf16=False,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=int(seed),
        use_cpu=True,
    )
    trainer = GKDTrainer(
        model=student,
        teacher_model=teacher,
        args=settings,
        train_dataset=rows,
        data_collator=default_data_collator,
        processing_class=tokenizer,
    )
    with clock(output):
        trainer.train()
    trainer.save_model(f"{output}/model")


if __name__ == "__main__":
    main(*sys.argv[1:])
