"""Drop attention heads, in whole groups that share a key and a value."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from distillkit.compression.activations import input_moments
from distillkit.compression.ffn import compensate, importance
from distillkit.compression.structure import keep_inputs, keep_outputs, rebuilt
from distillkit.compression.variant import Context, Step, Variant, torch_model
from distillkit.errors import UserError
from distillkit.features import ModelShape
from distillkit.models.anatomy import layer_stack, shape_of
from distillkit.models.live import LiveModel
from distillkit.models.onnx import OnnxModel

ATTENTION = "self_attn"
QUERIES, KEYS, OUT = "q_proj", ("k_proj", "v_proj"), "o_proj"


class DropHeads(Step):
    """Keep the same number of key-value heads in every layer, each with the query heads that read it.

    Only for models whose config tells the width of a head apart from the number of heads (`head_dim`): Llama, Qwen,
    Mistral, Gemma and their like. A group matters as much as it moves the output, as the units of `NarrowFFN`.

    Args:
        keep: How many key-value heads to keep.
    """

    calibrates = True
    reshapes = True

    def __init__(self, keep: int) -> None:
        if keep < 1:
            raise UserError(f"must be at least 1, got {keep}", where="keep")
        self.keep = keep

    def check(self, start: LiveModel | OnnxModel) -> None:
        """Refuse models whose config cannot express fewer heads."""
        if isinstance(start, LiveModel):
            attentions(start.model)
            self._check_count(shape_of(start.model.config))

    def _check_count(self, shape: ModelShape) -> None:
        if self.keep > shape.key_value_heads:
            raise UserError(f"there are {shape.key_value_heads} key-value heads, got {self.keep}", where="keep")

    def __call__(self, variant: Variant, context: Context) -> Variant:
        """Drop heads, and build the model anew."""
        live = torch_model(variant)
        shape, config = shape_of(live.model.config), live.model.config.get_text_config()
        self._check_count(shape)
        found = attentions(live.model)
        outs = {name: attention.get_submodule(OUT) for name, attention in found.items()}
        moments = input_moments(live, context.calibration.batches, outs)
        each = shape.heads // shape.key_value_heads
        for name, attention in found.items():
            moved = importance(moments[name], outs[name]).view(shape.key_value_heads, -1).sum(dim=1)
            groups = moved.topk(self.keep).indices.sort().values
            rows, queries = _features(groups, shape.head_width), _features(groups, each * shape.head_width)
            compensate(outs[name], moments[name], queries)
            keep_outputs(attention.get_submodule(QUERIES), queries)
            for part in KEYS:
                keep_outputs(attention.get_submodule(part), rows)
            keep_inputs(outs[name], queries)
        config.head_dim = shape.head_width
        config.num_attention_heads, config.num_key_value_heads = self.keep * each, self.keep
        small = LiveModel(rebuilt(live.model), live.tokenizer, live.task).eval()
        return Variant(small, notes={"heads": self.keep * each, "key_value_heads": self.keep})


def attentions(model: Any) -> dict[str, nn.Module]:
    """Return the attention of every layer: path of the map behind it → attention.

    Raises:
        UserError: If the model is of another make, or its config has no `head_dim`.
    """
    kind = model.config.model_type
    stack = layer_stack(model, "compress.model")
    found = {}
    for number, layer in enumerate(model.get_submodule(stack)):
        attention = dict(layer.named_children()).get(ATTENTION)
        parts = set() if attention is None else {name for name, _ in attention.named_children()}
        if (
            attention is None
            or not {QUERIES, *KEYS, OUT} <= parts
            or "num_key_value_heads" not in model.config.to_dict()
        ):
            fix = "drop layers (DropLayers) or narrow the feed-forward networks (NarrowFFN)"
            raise UserError(f"the config of {kind} cannot express fewer heads of the same width", fix=fix)
        found[f"{stack}.{number}.{ATTENTION}.{OUT}"] = attention
    return found


def _features(groups: Tensor, width: int) -> Tensor:
    """Return the indices of the features of some groups, `width` a group."""
    return (groups.unsqueeze(1) * width + torch.arange(width, device=groups.device)).flatten()
