"""What `compress` gives its steps to retrain with: the recipe's loss, teacher and data, and zeros that stay zero."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator

from distillkit.commands.cached import answered, check_store
from distillkit.commands.packing import packed
from distillkit.commands.parts import Data, bind, load_teacher, try_features
from distillkit.compression.masks import hold
from distillkit.compression.variant import Masks, Watch
from distillkit.data.encode import Encoded, encode
from distillkit.data.encode_stream import encode_training
from distillkit.data.plans import TrainingRows
from distillkit.errors import UserError
from distillkit.evaluation.evaluate import evaluate
from distillkit.freeze import digest
from distillkit.losses.objective import Objective
from distillkit.models.anatomy import shape_of
from distillkit.models.cached import CachedTeacher
from distillkit.models.live import LiveModel
from distillkit.models.teachers import FrozenModel, Teacher
from distillkit.models.tokenizers import check_same_vocabulary
from distillkit.schema import Config, TrainSettings
from distillkit.signals import Model
from distillkit.tasks.base import Task
from distillkit.training.loop import fit
from distillkit.training.records import Records
from distillkit.training.run import Run


@dataclass(frozen=True)
class Retrainer:
    """Everything that distilling again needs but the model.

    Attributes:
        config: Of the whole command.
        task: Of model and data.
        objective: The recipe's loss, not bound to any shape; every training works on a copy.
        teacher: What was chosen; None where no loss asks.
        answers: The teacher, loaded.
        train: The rows to train on.
        validation: The rows that choose the best weights; None if there are none.
        accelerator: Its processes share the work.
    """

    config: Config
    task: Task
    objective: Objective
    teacher: Teacher | None
    answers: Model | None
    train: TrainingRows
    validation: Encoded | None
    accelerator: Accelerator

    def retrain(
        self,
        name: str,
        step: str,
        live: LiveModel,
        masks: Masks,
        settings: TrainSettings,
        watch: Watch | None = None,
    ) -> None:
        """Train a model in place for the variant `name`; masked weights are set to zero after every optimiser step."""
        if (masks or watch is not None) and settings.lora.rank is not None:
            raise UserError(
                "pruned weights would come back when adapters are merged",
                where="train.lora.rank",
                fix=f"retrain in full, at a rate for that: +compress.steps.{step}.train.lora.rank=null",
            )
        folder = Path(self.config.output_dir) / "compressed"
        records = Records(folder / f"{name}.metrics.jsonl", self.accelerator)
        records.rewind(0)
        objective = copy.deepcopy(self.objective)
        bind(objective, shape_of(live.model.config), self.teacher)
        answers = self.answers
        if isinstance(answers, FrozenModel):
            answers = FrozenModel(answers.live, objective.wanted_of_teacher)
        try_features(objective, live.to(self.accelerator.device), answers, self.train)
        train = packed(self.train, objective, live, answers) if self.task.packing else self.train
        before, after = self._hooks(live, masks, watch, train.plan(settings).steps)
        fit(
            Run(
                student=live,
                teacher=answers,
                objective=objective,
                data=train,
                settings=settings,
                accelerator=self.accelerator,
                records=records,
                folder=scratch_folder(folder, 0) / name,
                digest=f"{digest(self.config, 'compress')}/{name}",
                title=name,
                evaluate=None if self.validation is None else self._quality,
                best_metric=settings.best_metric or self.task.quick().best_metric,
                before_step=before,
                after_step=after,
            )
        )
        live.eval()

    def _hooks(
        self, live: LiveModel, masks: Masks, watch: Watch | None, steps: int
    ) -> tuple[Callable[[], None] | None, Callable[[], None]]:
        """Return what is called before and after every optimiser step that changes weights."""
        held = {weight: mask.to(self.accelerator.device) for weight, mask in masks.items()}
        done = 0

        def before() -> None:
            assert watch is not None
            watch.before_step(done, steps)

        def after() -> None:
            nonlocal done
            hold(live.model, held)
            if watch is not None:
                watch.after_step(done, steps)
            done += 1

        return None if watch is None else before, after

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
    tried = copy.deepcopy(objective)
    bind(tried, shape_of(start.model.config), teacher)
    answers, live = None, None
    if teacher is not None and objective.needs_teacher:
        answers, live = load_teacher(teacher, task, data, tried, accelerator.device)
    if live is not None:
        check_same_vocabulary(live.tokenizer, start.tokenizer)
    cached = teacher if isinstance(teacher, CachedTeacher) and objective.needs_teacher else None
    if cached is not None:
        cached.check(task)
        check_store(cached, tried, data, task, start.tokenizer)
    train = encode_training(data.rows, task, start.tokenizer, data.labels)
    if cached is not None:
        assert isinstance(train, Encoded)  # streams were refused above
        train = answered(cached, train, tried, task)
    try_features(tried, start, answers, train)
    if task.packing:
        packed(train, tried, start, answers)
    validation = None
    if "validation" in data.rows.splits:
        validation = encode(data.rows, "validation", task, start.tokenizer, data.labels)
    return Retrainer(config, task, objective, teacher, answers, train, validation, accelerator)


def scratch_folder(compressed: Path, process: int) -> Path:
    """Return where a process keeps what is thrown away at the end."""
    return compressed / f".scratch-{process}"
