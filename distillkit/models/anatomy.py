"""Where things are inside a transformers model: its shape by its config, and its list of layers."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from distillkit.errors import UserError
from distillkit.features import ModelShape

DECODER_DEPTH = ("num_decoder_layers", "decoder_layers")  # names that configs of encoder-decoders give it


def shape_of(config: Any) -> ModelShape:
    """Read a transformers config; of an encoder-decoder it is the encoder that counts."""
    settings = config.get_text_config()
    heads = settings.num_attention_heads
    return ModelShape(
        depth=settings.num_hidden_layers,
        width=settings.hidden_size,
        heads=heads,
        key_value_heads=getattr(settings, "num_key_value_heads", None) or heads,
        head_width=getattr(settings, "head_dim", None) or settings.hidden_size // heads,
        causal=_is_causal(settings),
    )


def _is_causal(config: Any) -> bool:
    """Tell decoders by what transformers makes of them: an encoder may be trained to fill masks."""
    kind = config.model_type
    decodes = kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return decodes or bool(getattr(config, "is_decoder", False))


def layer_stack(model: Any, key: str) -> str:
    """Return the module path of a transformers model's list of layers; `key` is for the message if there is none.

    Of an encoder-decoder they are the encoder's.
    """
    depth = model.config.get_text_config().num_hidden_layers
    reach = model.get_encoder() if model.config.is_encoder_decoder else model
    inside = {id(module) for module in reach.modules() if isinstance(module, nn.ModuleList)}
    lists = {name: module for name, module in model.named_modules() if id(module) in inside}
    stacks = [name for name, module in lists.items() if len(module) == depth]
    if not stacks:
        raise UserError(f"cannot find the {depth} layers of {type(model).__name__}", where=key)
    return min(stacks, key=lambda name: name.count("."))


def decoder_depth(config: Any) -> tuple[str, int] | None:
    """Return the name and value of an encoder-decoder's setting for its decoder's layers; None for other models."""
    if not config.is_encoder_decoder:
        return None
    name = next((name for name in DECODER_DEPTH if isinstance(getattr(config, name, None), int)), None)
    if name is None:
        raise UserError(f"cannot find the number of decoder layers of {config.model_type}", where="student")
    return name, getattr(config, name)


def agree_on_depth(config: Any) -> None:
    """Say the depth of a T5-like decoder under the name by which transformers make room for its keys and values.

    Without it, they take the encoder's, and a deeper decoder cannot write.
    """
    if config.attribute_map.get("num_hidden_layers") == "num_layers" and config.is_encoder_decoder:
        config.decoder_layers = config.num_decoder_layers


def decoder_start(model: Any) -> int:
    """Return the token that a model's decoder begins with."""
    start = getattr(model.generation_config, "decoder_start_token_id", None)
    start = getattr(model.config, "decoder_start_token_id", None) if start is None else start
    if start is None:
        raise UserError(f"{type(model).__name__} does not say what its decoder begins with (decoder_start_token_id)")
    return start
