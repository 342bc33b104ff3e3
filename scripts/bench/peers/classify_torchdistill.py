"""Classification with torchdistill: a configuration, and the loop over a distillation box. JOB OUTPUT SEED."""

import sys

import torch
import torchvision_nms  # noqa: F401
from clock import clock
from datasets import load_dataset
from torchdistill.core.distillation import get_distillation_box
from torchdistill.datasets.registry import register_collate_func
from torchdistill.optim.registry import register_scheduler
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    get_linear_schedule_with_warmup,
)
from transformers.trainer_pt_utils import LengthGroupedSampler


def configure(lengths: list[int], steps: int) -> dict:
    """Write what is otherwise read from torchdistill's YAML."""
    logits = {"student_module_path": "classifier", "student_module_io": "output"}
    logits |= {"teacher_module_path": "classifier", "teacher_module_io": "output"}
    forward = {"forward_proc": "forward_batch_only_as_kwargs", "forward_hook": {"output": ["classifier"]}}
    loss = {"key": "KDLoss", "kwargs": {**logits, "temperature": 2.0, "alpha": 0.5}}
    return {
        "num_epochs": 1,
        "train_data_loader": {
            "dataset_id": "train",
            "requires_supp": False,
            "sampler": {"class_or_func": lambda _: LengthGroupedSampler(32, lengths=lengths)},
            "collate_fn": "pad",
            "kwargs": {"batch_size": 32},
        },
        "teacher": {**forward, "requires_grad": False},
        "student": {**forward},
        "optimizer": {
            "key": "AdamW",
            "kwargs": {"lr": 1e-4, "weight_decay": 0.01, "fused": True},
            "max_grad_norm": 1.0,
        },
        "scheduler": {
            "key": "get_linear_schedule_with_warmup",
            "kwargs": {"num_warmup_steps": 0, "num_training_steps": steps},
            "scheduling_step": 1,
        },
        "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": {"kd": {"criterion": loss, "weight": 1.0}}}},
    }


def main(job: str, output: str, seed: str) -> None:
    """Distil."""
    torch.manual_seed(int(seed))
    tokenizer = AutoTokenizer.from_pretrained(f"{job}/student")
    student = AutoModelForSequenceClassification.from_pretrained(f"{job}/student")
    teacher = AutoModelForSequenceClassification.from_pretrained(f"{job}/teacher").eval()
    rows = load_dataset("json", data_files=f"{job}/train.jsonl", split="train")

    def encode(batch):
        encoded = tokenizer(batch["text"], truncation=True, max_length=128)
        return {**encoded, "labels": [student.config.label2id[name] for name in batch["label"]]}

    rows = rows.map(encode, batched=True, remove_columns=rows.column_names)
    padding = DataCollatorWithPadding(tokenizer)
    register_scheduler(get_linear_schedule_with_warmup)

    @register_collate_func
    def pad(batch):
        padded = dict(padding(batch))
        return padded, padded.pop("labels"), None

    lengths = [len(ids) for ids in rows["input_ids"]]
    config = configure(lengths, steps=-(-len(lengths) // 32))
    box = get_distillation_box(teacher, student, {"train": rows}, config, torch.device("cpu"), None, False, 1)
    with clock(output):
        for epoch in range(box.num_epochs):
            box.pre_epoch_process(epoch=epoch)
            for batch, labels, extras in box.train_data_loader:
                box.pre_forward_process()
                box.post_forward_process(box.forward_process(batch, labels, extras))
            box.post_epoch_process()
    student.save_pretrained(f"{output}/model")
    tokenizer.save_pretrained(f"{output}/model")


if __name__ == "__main__":
    main(*sys.argv[1:])
