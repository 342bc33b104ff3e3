"""Students: a pretrained model, some layers of the teacher, or a smaller config from scratch."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING

from distillkit.data.rows import Rows
from distillkit.errors import UserError, did_you_mean
from distillkit.features import ModelShape
from distillkit.models.anatomy import agree_on_depth, decoder_depth, shape_of
from distillkit.models.levels import layer_stacks
from distillkit.models.live import LiveModel
from distillkit.models.load import load_config, load_live, load_processor
from distillkit.models.processors import ImageProcessor, config_facts
from distillkit.models.tokenizers import ByteLevelBPE, texts_in
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
        return load_live(self.path, task, "student.path", labels, trained=not task.adds_head)


class FromTeacher:
    """Copy some layers of the teacher, with its embeddings, final norm and head (as DistilBERT, Sanh et al. 2019).

    Args:
        layers: Which of the teacher's layers, counted from 0; or how many, spread evenly from first to last. Of an
            encoder-decoder, those of its encoder.
        decoder_layers: Likewise, of an encoder-decoder's decoder; null: as `layers`.
    """

    needs_teacher = True

    def __init__(self, layers: int | list[int], decoder_layers: int | list[int] | None = None) -> None:
        self.layers = _check_choice(layers, "student.layers")
        self.decoder_layers = _check_choice(decoder_layers, "student.decoder_layers")

    def shape(self, teacher: Any) -> ModelShape:
        """Return the shape of the model that `build` makes, given the teacher's config."""
        return replace(shape_of(teacher), depth=len(_chosen(self.layers, shape_of(teacher).depth, "student.layers")))

    def build(self, task: Task, labels: list[str] | None, rows: Rows, teacher: LiveModel | None) -> LiveModel:  # noqa: ARG002
        """Copy the teacher's chosen layers in float32."""
        assert teacher is not None
        config = teacher.model.config
        chosen = [_chosen(self.layers, config.get_text_config().num_hidden_layers, "student.layers")]
        decoder = decoder_depth(config)
        if decoder is not None:
            which = self.layers if self.decoder_layers is None else self.decoder_layers
            chosen.append(_chosen(which, decoder[1], "student.decoder_layers"))
        elif self.decoder_layers is not None:
            raise UserError(f"{config.model_type} has no decoder beside its layers", where="student.decoder_layers")
        return LiveModel(copy_layers(teacher.model, *chosen), copy.deepcopy(teacher.tokenizer), task)


def _check_choice(layers: Any, key: str) -> Any:
    chosen = [layers] if isinstance(layers, int) else layers
    least = 1 if isinstance(layers, int) else 0
    if layers is not None and (not chosen or min(chosen) < least or chosen != sorted(set(chosen))):
        raise UserError(f"must be a count or ascending layer numbers, got {layers}", where=key)
    return layers


def _chosen(layers: int | list[int], depth: int, key: str) -> list[int]:
    chosen = spread(layers, depth) if isinstance(layers, int) else layers
    if chosen[-1] >= depth or len(chosen) > depth:
        what = f"the teacher has no layer {max(chosen[-1], len(chosen) - 1)}"
        raise UserError(what, where=key, fix=f"its layers are 0 … {depth - 1}")
    return chosen


class FromConfig:
    """Start from random weights.

    Args:
        model_type: transformers' name of the architecture, such as "llama" or "bert"; null: the teacher's config.
        config: Values of that architecture's config, such as hidden_size and num_hidden_layers.
        tokenizer: Folder or hub id; a tokenizer node to train one on the training rows; null: the teacher's. Of
            models that read images, likewise their image processor.
    """

    def __init__(
        self,
        config: dict[str, Any],
        model_type: str | None = None,
        tokenizer: str | ByteLevelBPE | ImageProcessor | None = None,
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
        tokenizer = self._tokenizer(task, rows, teacher)
        facts = config_facts(tokenizer)
        config = self._config(None if teacher is None else teacher.model.config, dict(facts))
        if "vocab_size" in facts and config.vocab_size < facts["vocab_size"]:
            what = f"{config.vocab_size} is below the tokenizer's {facts['vocab_size']}"
            raise UserError(what, where="student.config.vocab_size")
        try:
            task.prepare(config, labels, trained=False, key="student.config")
            return LiveModel(task.auto_class().from_config(config, dtype=torch.float32), tokenizer, task)
        except (ValueError, RuntimeError, TypeError, KeyError) as error:
            raise UserError(f"no model can be made of it ({error})", where="student.config") from error

    def _tokenizer(self, task: Task, rows: Rows, teacher: LiveModel | None) -> Any:
        if isinstance(self.tokenizer, str):
            return load_processor(self.tokenizer, task, "student.tokenizer")
        if isinstance(self.tokenizer, ImageProcessor):
            return self.tokenizer.make()
        if isinstance(self.tokenizer, ByteLevelBPE):
            return self.tokenizer.train(texts_in(rows.example("train")))
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
        if base.is_encoder_decoder:  # its tokens too are those of the tokenizer
            of_tokenizer |= {"decoder_start_token_id": of_tokenizer.get("pad_token_id")}
            of_tokenizer |= {"forced_eos_token_id": of_tokenizer.get("eos_token_id")}
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
        return [count - 1]  # which is not there
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


def copy_layers(model: Any, layers: list[int], decoder_layers: list[int] | None = None) -> Any:
    """Make a model of the given layers of another, everything outside the layers copied, in float32.

    Args:
        model: Of transformers.
        layers: Of its layers; of an encoder-decoder, of its encoder's.
        decoder_layers: Of an encoder-decoder's decoder.

    Raises:
        UserError: If the model's layers are not to be found.
    """
    config = copy.deepcopy(model.config)
    settings = config.get_text_config()
    for name, value in settings.to_dict().items():
        if _is_layered(name, value, model.config.get_text_config()):
            setattr(settings, name, [value[layer] for layer in layers])
    settings.num_hidden_layers = len(layers)
    kept = dict(zip(layer_stacks(model, "student.layers"), (layers, decoder_layers), strict=False))
    decoder = decoder_depth(config)
    if decoder is not None and decoder_layers is not None:
        setattr(config, decoder[0], len(decoder_layers))
        agree_on_depth(config)
    small = type(model)._from_config(config, dtype=torch.float32)
    wanted = small.state_dict().keys()
    state = {}
    for name, tensor in model.state_dict().items():
        stack = next((path for path in kept if name.startswith(f"{path}.")), None)
        if stack is None:
            state[name] = tensor
            continue
        number, _, rest = name.removeprefix(f"{stack}.").partition(".")
        chosen = kept[stack] or []
        if int(number) in chosen:
            state[f"{stack}.{chosen.index(int(number))}.{rest}"] = tensor
        elif number == "0" and f"{stack}.0.{rest}" in wanted:  # T5's first layers hold the position bias of all
            state.setdefault(f"{stack}.0.{rest}", tensor)
    try:
        small.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise UserError(f"the layers of {type(model).__name__} are not alike", where="student.layers") from error
    small.tie_weights()
    if model.can_generate():
        small.generation_config = copy.deepcopy(model.generation_config)
    return small
