"""Students: a pretrained model, some layers of the teacher, or a smaller config from scratch."""

from __future__ import annotations

import copy
import re
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig

from distillkit.data.rows import Rows
from distillkit.errors import UserError, did_you_mean
from distillkit.models.live import LiveModel
from distillkit.models.load import describe_labels, load_live, load_tokenizer
from distillkit.models.tokenizers import ByteLevelBPE
from distillkit.tasks.base import Task


class Pretrained:
    """Start from a pretrained model; a missing task head is new.

    Args:
        path: Folder or hub id.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    needs_teacher = False

    def build(self, task: Task, labels: list[str] | None, rows: Rows, teacher: LiveModel | None) -> LiveModel:  # noqa: ARG002
        """Load the model."""
        return load_live(self.path, task, "student.path", labels, trained=not task.has_classes)


class FromTeacher:
    """Copy some layers of the teacher, with its embeddings, final norm and head (as DistilBERT, Sanh et al. 2019).

    Args:
        layers: Which of the teacher's layers, counted from 0; or how many, spread evenly from first to last.
    """

    needs_teacher = True

    def __init__(self, layers: int | list[int]) -> None:
        chosen = [layers] if isinstance(layers, int) else layers
        if not chosen or min(chosen) < (1 if isinstance(layers, int) else 0) or chosen != sorted(set(chosen)):
            raise UserError(f"must be a count or ascending layer numbers, got {layers}", where="student.layers")
        self.layers = layers

    def build(self, task: Task, labels: list[str] | None, rows: Rows, teacher: LiveModel | None) -> LiveModel:  # noqa: ARG002
        """Copy the teacher's chosen layers in float32."""
        assert teacher is not None
        depth = teacher.model.config.get_text_config().num_hidden_layers
        layers = spread(self.layers, depth) if isinstance(self.layers, int) else self.layers
        if layers[-1] >= depth or len(layers) > depth:
            raise UserError(
                f"the teacher has no layer {max(layers[-1], len(layers) - 1)}",
                where="student.layers",
                fix=f"its layers are 0 … {depth - 1}",
            )
        return LiveModel(copy_layers(teacher.model, layers), copy.deepcopy(teacher.tokenizer), task)


class FromConfig:
    """Start from random weights.

    Args:
        model_type: transformers' name of the architecture, such as "llama" or "bert"; null: the teacher's config.
        config: Values of that architecture's config, such as hidden_size and num_hidden_layers.
        tokenizer: Folder or hub id; a tokenizer node to train one on the training rows; null: the teacher's.
    """

    def __init__(
        self,
        config: dict[str, Any],
        model_type: str | None = None,
        tokenizer: str | ByteLevelBPE | None = None,
    ) -> None:
        self.model_type = model_type
        self.config = config
        self.tokenizer = tokenizer
        self.needs_teacher = model_type is None or tokenizer is None

    def build(self, task: Task, labels: list[str] | None, rows: Rows, teacher: LiveModel | None) -> LiveModel:
        """Make the tokenizer and the model."""
        tokenizer = self._tokenizer(rows, teacher)
        config = self._config(teacher, tokenizer)
        if labels is not None:
            describe_labels(config, labels)
        try:
            model = task.auto_class().from_config(config)
        except (ValueError, RuntimeError, TypeError) as error:
            raise UserError(f"no model can be made of it ({error})", where="student.config") from error
        return LiveModel(model, tokenizer, task)

    def _tokenizer(self, rows: Rows, teacher: LiveModel | None) -> Any:
        if isinstance(self.tokenizer, str):
            return load_tokenizer(self.tokenizer, "student.tokenizer")
        if isinstance(self.tokenizer, ByteLevelBPE):
            train = rows.split("train")
            return self.tokenizer.train(train["text"] if "text" in train.column_names else train["prompt"])
        assert teacher is not None
        return copy.deepcopy(teacher.tokenizer)

    def _config(self, teacher: LiveModel | None, tokenizer: Any) -> Any:
        special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
        if self.model_type is None:
            assert teacher is not None
            config = copy.deepcopy(teacher.model.config)
        else:
            try:
                config = AutoConfig.for_model(self.model_type, vocab_size=len(tokenizer), **special)
            except ValueError as error:
                raise UserError(f"unknown architecture '{self.model_type}'", where="student.model_type") from error
        known = list(config.to_dict())
        for name, value in self.config.items():
            if name not in known:
                raise UserError(
                    f"{config.model_type} has no setting '{name}'",
                    where="student.config",
                    fix=did_you_mean(name, known),
                )
            setattr(config, name, value)
        return type(config)(**config.to_diff_dict()) if self.model_type is not None else config


Student = Pretrained | FromTeacher | FromConfig


def spread(count: int, depth: int) -> list[int]:
    """Choose `count` of `depth` layers evenly, the first and the last among them (one: the first)."""
    if count > depth:
        return list(range(count))
    return [round(index * (depth - 1) / max(count - 1, 1)) for index in range(count)]


def copy_layers(model: Any, layers: list[int]) -> Any:
    """Make a model of the given layers of another, everything outside the layers copied, in float32.

    Raises:
        UserError: If the model's layers are not to be found.
    """
    config = copy.deepcopy(model.config)
    settings = config.get_text_config()
    depth = settings.num_hidden_layers
    stack = layer_stack(model, depth)
    for name, value in settings.to_dict().items():
        if isinstance(value, list | tuple) and len(value) == depth and name != "architectures":
            setattr(settings, name, [value[layer] for layer in layers])
    settings.num_hidden_layers = len(layers)
    small = type(model)._from_config(config, dtype=torch.float32)
    state = {}
    for name, tensor in model.state_dict().items():
        match = re.match(rf"{re.escape(stack)}\.(\d+)\.(.*)", name)
        if match is None:
            state[name] = tensor
        elif int(match[1]) in layers:
            state[f"{stack}.{layers.index(int(match[1]))}.{match[2]}"] = tensor
    small.load_state_dict(state, strict=True)
    small.tie_weights()
    return small


def layer_stack(model: nn.Module, depth: int) -> str:
    """Return the module path of the list of layers."""
    lists = {name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    stacks = [name for name, module in lists.items() if len(module) == depth]
    if not stacks:
        raise UserError(f"cannot find the {depth} layers of {type(model).__name__}", where="student.layers")
    return min(stacks, key=lambda name: name.count("."))
