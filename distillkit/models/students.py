"""Students: a pretrained model, some layers of the teacher, or a smaller config from scratch."""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING

from distillkit.data.rows import Rows
from distillkit.errors import UserError, did_you_mean
from distillkit.features import ModelShape
from distillkit.models.anatomy import layer_stack, shape_of
from distillkit.models.live import LiveModel
from distillkit.models.load import describe_labels, load_config, load_live, load_tokenizer
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

    def shape(self, teacher: Any) -> ModelShape:  # noqa: ARG002
        """Return the shape of the model that `build` makes, given the teacher's config."""
        return shape_of(load_config(self.path, "student.path"))

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

    def shape(self, teacher: Any) -> ModelShape:
        """Return the shape of the model that `build` makes, given the teacher's config."""
        return replace(shape_of(teacher), depth=len(self._chosen(shape_of(teacher).depth)))

    def build(self, task: Task, labels: list[str] | None, rows: Rows, teacher: LiveModel | None) -> LiveModel:  # noqa: ARG002
        """Copy the teacher's chosen layers in float32."""
        assert teacher is not None
        layers = self._chosen(teacher.model.config.get_text_config().num_hidden_layers)
        return LiveModel(copy_layers(teacher.model, layers), copy.deepcopy(teacher.tokenizer), task)

    def _chosen(self, depth: int) -> list[int]:
        layers = spread(self.layers, depth) if isinstance(self.layers, int) else self.layers
        if layers[-1] >= depth or len(layers) > depth:
            raise UserError(
                f"the teacher has no layer {max(layers[-1], len(layers) - 1)}",
                where="student.layers",
                fix=f"its layers are 0 … {depth - 1}",
            )
        return layers


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

    def shape(self, teacher: Any) -> ModelShape:
        """Return the shape of the model that `build` makes, given the teacher's config."""
        return shape_of(self._config(teacher, {}))

    def build(self, task: Task, labels: list[str] | None, rows: Rows, teacher: LiveModel | None) -> LiveModel:
        """Make the tokenizer and the model."""
        tokenizer = self._tokenizer(rows, teacher)
        special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
        config = self._config(
            None if teacher is None else teacher.model.config, {"vocab_size": len(tokenizer)} | special
        )
        if config.vocab_size < len(tokenizer):
            raise UserError(
                f"{config.vocab_size} is below the tokenizer's {len(tokenizer)}", where="student.config.vocab_size"
            )
        try:
            if labels is not None:
                describe_labels(config, labels)
            return LiveModel(task.auto_class().from_config(config, dtype=torch.float32), tokenizer, task)
        except (ValueError, RuntimeError, TypeError, KeyError) as error:
            raise UserError(f"no model can be made of it ({error})", where="student.config") from error

    def _tokenizer(self, rows: Rows, teacher: LiveModel | None) -> Any:
        if isinstance(self.tokenizer, str):
            return load_tokenizer(self.tokenizer, "student.tokenizer")
        if isinstance(self.tokenizer, ByteLevelBPE):
            train = rows.split("train")
            columns = [name for name in ("text", "text_pair", "prompt", "completion") if name in train.column_names]
            return self.tokenizer.train(text for name in columns for text in train[name][:])
        assert teacher is not None
        return copy.deepcopy(teacher.tokenizer)

    def _config(self, teacher: Any, of_tokenizer: dict[str, Any]) -> Any:
        """Make the config; what the tokenizer decides counts where the teacher's config is not the base."""
        if self.model_type is None:
            assert teacher is not None
            base = teacher
        elif self.model_type in CONFIG_MAPPING:
            base = CONFIG_MAPPING[self.model_type]()
        else:
            fix = did_you_mean(self.model_type, list(CONFIG_MAPPING))
            raise UserError(f"unknown architecture '{self.model_type}'", where="student.model_type", fix=fix)
        known = {*base.to_dict(), *base.attribute_map}
        for name in self.config:
            if name not in known:
                fix = did_you_mean(name, list(known))
                raise UserError(f"{base.model_type} has no setting '{name}'", where="student.config", fix=fix)
        changes = {base.attribute_map.get(name, name): value for name, value in self.config.items()}
        try:
            if self.model_type is None:
                return type(base).from_dict(independent(base, changes) | changes)
            return type(base)(**(of_tokenizer | changes))
        except (StrictDataclassError, ValueError, TypeError, KeyError) as error:
            raise UserError(f"no model can be made of it ({error})", where="student.config") from error


Student = Pretrained | FromTeacher | FromConfig


def spread(count: int, depth: int) -> list[int]:
    """Choose `count` of `depth` layers evenly, the first and the last among them (one: the first)."""
    if count > depth:
        return list(range(count))
    return [round(index * (depth - 1) / max(count - 1, 1)) for index in range(count)]


def independent(config: Any, changes: dict[str, Any]) -> dict[str, Any]:
    """Return a config's values without those that follow from others that change, so that they are derived anew.

    These are the lists with an entry for each layer, and a head's width and the key-value heads where they are the
    usual ones.
    """

    def changed(name: str) -> bool:
        own = config.attribute_map.get(name, name)
        return own in changes and changes[own] != getattr(config, own)

    values = config.to_diff_dict()
    if changed("num_hidden_layers"):
        values = {name: value for name, value in values.items() if not _is_layered(name, value, config)}
    heads = changed("num_attention_heads")
    if (heads or changed("hidden_size")) and values.get("head_dim") == config.hidden_size // config.num_attention_heads:
        del values["head_dim"]
    if heads and values.get("num_key_value_heads") == config.num_attention_heads:
        del values["num_key_value_heads"]
    return values


def _is_layered(name: str, value: Any, config: Any) -> bool:
    ids = name.endswith("token_id") or name == "architectures"
    return isinstance(value, list | tuple) and len(value) == config.num_hidden_layers and not ids


def copy_layers(model: Any, layers: list[int]) -> Any:
    """Make a model of the given layers of another, everything outside the layers copied, in float32.

    Raises:
        UserError: If the model's layers are not to be found.
    """
    config = copy.deepcopy(model.config)
    settings = config.get_text_config()
    stack = layer_stack(model, "student.layers")
    for name, value in settings.to_dict().items():
        if _is_layered(name, value, model.config.get_text_config()):
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
    try:
        small.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise UserError(f"the layers of {type(model).__name__} are not alike", where="student.layers") from error
    small.tie_weights()
    if model.can_generate():
        small.generation_config = copy.deepcopy(model.generation_config)
    return small
