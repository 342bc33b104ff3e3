"""What `compress` gives its steps to retrain with: the recipe's loss, teacher and data, and zeros that stay zero."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator

from distillkit.commands.packing import packed
from distillkit.commands.parts import Data, bind, load_teacher, try_features
from distillkit.compression.prune import hold
from distillkit.compression.variant import Masks
from distillkit.data.encode import Encoded, encode
from distillkit.errors import UserError
from distillkit.evaluation.evaluate import evaluate
from distillkit.freeze import digest
from distillkit.losses.objective import Objective
from distillkit.models.anatomy import shape_of
from distillkit.models.live import LiveModel
from distillkit.models.teachers import Teacher
from distillkit.models.tokenizers import check_same_vocabulary
from distillkit.schema import Config, TrainSettings
from distillkit.signals import Model
from distillkit.tasks.base import Task
from distillkit.training.loop import Run, fit
from distillkit.training.records import Records


@dataclass(frozen=True)
class Retrainer:
    """Everything that distilling again needs but the model.

    Attributes:
        config: Of the whole command.
        task: Of model and data.
        objective: The recipe's loss.
        teacher: Answers batches; None where no loss asks.
        train: The rows to train on.
        validation: The rows that choose the best weights; None if there are none.
        accelerator: Its processes share the work.
    """

    config: Config
    task: Task
    objective: Objective
    teacher: Model | None
    train: Encoded
    validation: Encoded | None
    accelerator: Accelerator

    def retrain(self, name: str, model: LiveModel, masks: Masks, settings: TrainSettings) -> None:
        """Train the model in place for the step `name`; masked weights are set to zero after every optimiser step."""
        if masks and settings.lora.rank is not None:
            raise UserError(
                "pruned weights would come back when adapters are merged",
                where="train.lora.rank",
                fix=f"retrain in full, at a rate for that: +compress.steps.{name}.train.lora.rank=null",
            )
        folder = Path(self.config.output_dir) / "compressed"
        held = {weight: mask.to(self.accelerator.device) for weight, mask in masks.items()}
        records = Records(folder / f"{name}.metrics.jsonl", self.accelerator)
        records.rewind(0)
        fit(
            Run(
                student=model,
                teacher=self.teacher,
                objective=self.objective,
                data=self.train,
                settings=settings,
                accelerator=self.accelerator,
                records=records,
                folder=scratch_folder(folder, 0) / name,
                digest=f"{digest(self.config, 'compress')}/{name}",
                title=name,
                evaluate=None if self.validation is None else self._quality,
                best_metric=settings.best_metric or self.task.quick().best_metric,
                after_step=lambda: hold(model.model, held),
            )
        )
        model.eval()

    def _quality(self, model: LiveModel) -> dict[str, float]:
        assert self.validation is not None
        size, task = self.config.train.evaluate_batch_size, self.task.quick()
        return evaluate(model, task, self.validation, size, self.accelerator, True, keep_answers=False).metrics


def load_retrainer(
    config: Config,
    task: Task,
    objective: Objective,
    teacher: Teacher | None,
    data: Data,
    start: LiveModel,
    accelerator: Accelerator,
) -> Retrainer:
    """Load the teacher of the model to start from, if the loss asks for one, and encode the rows."""
    bind(objective, shape_of(start.model.config), teacher)
    answers, live = None, None
    if teacher is not None and objective.needs_teacher:
        answers, live = load_teacher(teacher, task, data, objective, accelerator.device)
    if live is not None:
        check_same_vocabulary(live.tokenizer, start.tokenizer)
    train = encode(data.rows, "train", task, start.tokenizer, data.labels)
    try_features(objective, start, answers, train)
    if task.packing:
        train = packed(train, objective, start, answers)
    validation = None
    if "validation" in data.rows.splits:
        validation = encode(data.rows, "validation", task, start.tokenizer, data.labels)
    return Retrainer(config, task, objective, answers, train, validation, accelerator)


def scratch_folder(compressed: Path, process: int) -> Path:
    """Return where a process keeps what is thrown away at the end."""
    return compressed / f".scratch-{process}"
