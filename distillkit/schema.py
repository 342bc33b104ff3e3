"""The typed config: one root for every command.

A *node* is a mapping with a `_target_` (the class to build) and that class's arguments; it stays
untyped here and is checked against the class's signature by `distillkit.build`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

Node = dict[str, Any]


class Precision(StrEnum):
    """The arithmetic of forward and backward; weights and optimiser state stay float32."""

    no = "no"
    bf16 = "bf16"
    fp16 = "fp16"


class Schedule(StrEnum):
    """The learning rate after the warm-up."""

    constant = "constant"
    linear = "linear"
    cosine = "cosine"


class Optimizer(StrEnum):
    """What changes the weights."""

    adamw = "adamw"
    adamw_8bit = "adamw_8bit"  # its state in 8 bits (bitsandbytes)


class Engine(StrEnum):
    """How several processes hold what is trained."""

    ddp = "ddp"  # each the whole of it
    fsdp = "fsdp"  # each a share of weights, gradients and optimiser state (torch's FSDP 2)


@dataclass
class LoraSettings:
    """Low-rank adapters beside the linear maps of the student's layers, merged into them in the end."""

    rank: int | None = None  # null: no adapters
    alpha: float = 16.0  # what an adapter adds is multiplied by alpha / rank
    dropout: float = 0.0  # of an adapter's input
    targets: Any = None  # a pattern of module names, or a list of these; null: every linear map in the layers
    keep_adapter: bool = False  # also write <output_dir>/adapter, for peft


@dataclass
class TrainSettings:
    """How `train` (and a retraining step of `compress`) optimises."""

    seed: int = 42
    batch_size: int = 32  # rows of one optimiser step, over all processes and micro-batches
    micro_batch_size: int | None = None  # rows of one forward pass of one process; null: the process's whole share
    auto_batch: bool = False  # halve micro_batch_size until the longest rows fit into memory
    max_steps: int | None = None  # optimiser steps; wins over epochs
    epochs: float = 3.0
    learning_rate: float = 5e-5
    head_learning_rate: float | None = None  # of what lies outside the pretrained base model; null: learning_rate
    layer_decay: float = 1.0  # what the rate is multiplied by from each level to the next lower one
    freeze: Any = None  # N: the embeddings and the lowest N layers; a name pattern; a list of these
    unfreeze: float | None = None  # thaw from the top down: below 1: within this share of all steps; from 1: steps
    lora: LoraSettings = field(default_factory=LoraSettings)
    optimizer: Optimizer = Optimizer.adamw
    weight_decay: float = 0.01  # never on norms and biases
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    epsilon: float = 1e-8
    schedule: Schedule = Schedule.linear
    warmup: float = 0.1  # below 1: share of all steps; from 1: steps
    final_learning_rate: float = 0.0  # share of learning_rate at the last step (linear, cosine)
    max_grad_norm: float | None = 1.0
    max_nonfinite_steps: int = 5  # skipped in a row, since their loss or gradient is not finite, before the run ends
    precision: Precision = Precision.no
    activation_checkpointing: bool = False  # compute a layer's activations again in the backward pass
    compile: bool = False  # the student's layers, with torch.compile
    group_by_length: bool = True
    evaluate_every: int | None = None  # steps; null: at the end of each epoch, at most 10 times
    evaluate_batch_size: int = 64
    best_metric: str | None = None  # "loss", "accuracy", …; null: the task's own
    keep_best: bool = True  # export the best evaluated weights, not the last ones
    patience: int | None = None  # stop after so many evaluations in a row that are not better; null: never
    min_delta: float = 0.0  # by more than this is better, to patience
    checkpoint_every: int | None = 500  # steps; null: never
    keep_checkpoints: int = 2
    async_checkpoint: bool = False  # write checkpoints while training goes on; takes a copy of what is written
    log_every: int = 10


@dataclass
class EvaluateSettings:
    """What `eval` compares, on which rows, and what is measured of every model."""

    models: dict[str, str] = field(default_factory=dict)  # name → folder or hub id; the first is the teacher
    split: str = "validation"
    batch_size: int = 64
    limit: int | None = None  # rows
    baseline: str | None = None  # the model trained without a teacher; null: one named alone or baseline
    resamples: int = 1000  # of the examples, for intervals and p-values; 0: neither
    resample_seconds: float = 60.0  # no further resample is begun after so long
    seed: int = 0  # of the resamples
    divergence: bool = True  # over a vocabulary: one more pass over the rows, for KL to the teacher and calibration
    differences: int = 50  # examples of each model in differences.jsonl
    samples: int = 3  # texts that language models go on with; 0: none
    sample_tokens: int = 32  # of each continuation
    prompts: list[str] = field(default_factory=list)  # to go on with; none: the beginnings of the first rows
    speed: bool = True  # measure latency and throughput
    speed_batch_sizes: list[int] = field(default_factory=lambda: [8, 32])  # of the throughput; latency is at 1
    speed_rounds: int = 7
    memory: bool | None = None  # measure peak memory, each model in a process of its own; null: if speed is measured
    tasks: list[str] = field(default_factory=list)  # of lm-eval, which then asks the models in place of the dataset
    tasks_folder: str | None = None  # with task files of one's own
    few_shot: int | None = None  # examples before each question of a task; null: as the task says


@dataclass
class Budget:
    """What a variant may cost and lose; null: as much as it likes."""

    size_mb: float | None = None  # of the weight files, in millions of bytes
    latency_ms: float | None = None  # of one row
    max_quality_drop: float | None = None  # of the task's metric, in its unit: 0.005 is half a point of accuracy


@dataclass
class CompressSettings:
    """The chain of `compress`."""

    model: str = ""  # folder or hub id to start from
    steps: dict[str, Any] = field(default_factory=dict)  # name → node, applied in order
    calibration_split: str = "train"  # rows that some steps look at activations with
    calibration_rows: int = 128
    calibration_batch_size: int = 8
    grid: dict[str, Any] = field(default_factory=dict)  # step → argument → values to try, in every combination
    budget: Budget = field(default_factory=Budget)  # the best variant that keeps it is copied to compressed/chosen
    check_reload: bool = True  # load every variant in a fresh process with plain transformers or ONNX Runtime


@dataclass
class LaunchSettings:
    """Where the work runs."""

    engine: Engine = Engine.ddp  # of train
    reshard_after_forward: bool = True  # fsdp: free a layer's weights between its forward and its backward pass
    num_processes: int = 1
    num_machines: int = 1
    machine_rank: int = 0
    main_process_ip: str | None = None
    main_process_port: int | None = None
    max_restarts: int = 0  # after a process died: all of them go on from the newest checkpoint
    config_file: str | None = None  # an `accelerate config` file; wins over everything above


@dataclass
class TrackerSettings:
    """Trackers of Accelerate that receive what metrics.jsonl receives."""

    log_with: list[str] = field(default_factory=list)  # tensorboard, wandb, mlflow
    project: str = "distillkit"


@dataclass
class Stage:
    """One stage of `run`: the recipe with some groups swapped and some values set."""

    command: str = "train"
    choose: dict[str, str] = field(default_factory=dict)  # config group → option, replacing the recipe's node
    set: dict[str, Any] = field(default_factory=dict)  # values merged on top


@dataclass
class Config:
    """The root of every command."""

    name: str = "distillkit"
    output_dir: str = "outputs/${name}"
    root_dir: str = "${output_dir}"  # of the whole run; a stage's output_dir lies in it
    resume: str = "auto"  # auto, never, or the path of a checkpoint
    overwrite: bool = False  # throw away what another config left in output_dir
    vars: dict[str, Any] = field(default_factory=dict)  # a recipe's own values, for its other keys to refer to
    task: Any = field(default_factory=dict)
    dataset: Any = field(default_factory=dict)
    teacher: Any = field(default_factory=dict)
    student: Any = field(default_factory=dict)
    loss: Any = field(default_factory=dict)
    train: TrainSettings = field(default_factory=TrainSettings)
    generate: Any = field(default_factory=dict)
    evaluate: EvaluateSettings = field(default_factory=EvaluateSettings)
    compress: CompressSettings = field(default_factory=CompressSettings)
    launch: LaunchSettings = field(default_factory=LaunchSettings)
    tracker: TrackerSettings = field(default_factory=TrackerSettings)
    stages: dict[str, Stage] = field(default_factory=dict)
    upstream: dict[str, str] = field(default_factory=dict)  # set by `run`: stage read from → its config's digest
