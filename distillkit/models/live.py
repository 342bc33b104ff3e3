"""A transformers model that answers a batch with a signal, as a teacher, a student or under evaluation."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from distillkit.errors import UserError
from distillkit.models.capture import capturing
from distillkit.models.head import check_head
from distillkit.signals import LOGITS, Batch, Signal, Wanted
from distillkit.tasks.base import Task


class LiveModel(nn.Module):
    """A transformers model, what prepares its inputs, and the task it answers.

    Args:
        model: The transformers model.
        tokenizer: Its tokenizer, which pads with what the model takes for padding, or else with the end-of-text token;
            of a model that reads images, its image processor.
        task: Decides how outputs become items.
    """

    def __init__(self, model: Any, tokenizer: Any, task: Task) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.task = task
        task.adapt(tokenizer)
        if task.modality == "text":
            _agree_on_padding(model.config.get_text_config(), tokenizer)
            _check_room(model.config.get_text_config(), task)
        if not task.adds_head:
            check_head(model)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    @property
    def labels(self) -> list[str]:
        """Class names in the order of their ids."""
        return [self.model.config.id2label[index] for index in range(self.model.config.num_labels)]

    def forward(self, batch: Batch, wanted: Wanted = LOGITS) -> Signal:
        """Answer a batch; without gradients, the model runs no deeper than the features asked for if they are all."""
        if not wanted.features:
            return self.task.signal(self.model, batch)
        signal = Signal()
        stop = not wanted.logits and not torch.is_grad_enabled()
        with capturing(self.model, wanted.features, stop) as taken:
            signal = self.task.signal(self.model, batch)
        return replace(signal, features=taken)

    def count_parameters(self) -> int:
        """Count the parameters, tied ones once."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def count_nonzeros(self) -> int:
        """Count the parameters that are not zero."""
        return sum(int(parameter.count_nonzero()) for parameter in self.model.parameters())

    def save(self, folder: Path, card: str | None = None) -> None:
        """Write a Hugging Face folder (safetensors, config, tokenizer, card), whole or not at all."""
        whole_or_nothing(folder, lambda beside: self._write(beside, card))

    def _write(self, folder: Path, card: str | None) -> None:
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        if card is not None:
            (folder / "README.md").write_text(card, encoding="utf-8")


def _agree_on_padding(config: Any, tokenizer: Any) -> None:
    """Give model and tokenizer one padding token: a decoder that classifies looks for the last token before it."""
    if config.pad_token_id is not None and 0 <= config.pad_token_id < len(tokenizer):
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(config.pad_token_id)
        return
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token_id is None:
        raise UserError("the tokenizer has neither a padding nor an end-of-text token", where=tokenizer.name_or_path)
    config.pad_token_id = tokenizer.pad_token_id


def _check_room(config: Any, task: Task) -> None:
    """Refuse rows longer than the model has positions."""
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and task.max_length > positions:
        raise UserError(
            f"{task.max_length} tokens are more than the model's {positions} positions", where="task.max_length"
        )


def whole_or_nothing(folder: Path, write: Callable[[Path], object]) -> None:
    """Let `write(beside)` fill a folder beside `folder`, then rename it into place."""
    beside = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        write(beside)
        if folder.exists():
            shutil.rmtree(folder)
        beside.rename(folder)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
