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


def shape_of(config: Any) -> ModelShape:
    """Read a transformers config."""
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
    """Return the module path of a transformers model's list of layers; `key` is for the message if there is none."""
    depth = model.config.get_text_config().num_hidden_layers
    lists = {name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    stacks = [name for name, module in lists.items() if len(module) == depth]
    if not stacks:
        raise UserError(f"cannot find the {depth} layers of {type(model).__name__}", where=key)
    return min(stacks, key=lambda name: name.count("."))
