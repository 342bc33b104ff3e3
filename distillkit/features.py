"""Features: what is captured inside a model, by name, and only while something asks for it.

Names, and what is captured for them:

    embeddings           input of the first layer                      `[batch, length, width]`
    layers.3.hidden      output of layer 3 (counted from 0), before any final norm
    layers.3.query       queries of its self-attention as they meet the keys (after rotation), scaled so that
                         q · k / √head_width are the scores            `[batch, heads, length, head_width]`
    layers.3.key, .value likewise `[batch, key_value_heads, length, head_width]`
    module:bert.pooler   output of the module with that path           `[batch, …]`

The layers of an encoder-decoder are its encoder's, and modules are of its encoder too: a batch's positions are the
source's.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelShape:
    """What layer maps and projectors need to know of a model before its weights are loaded.

    Attributes:
        depth: Layers.
        width: Of the hidden states.
        heads: Attention heads of a layer.
        key_value_heads: Heads of keys and values; fewer than `heads` in grouped attention.
        head_width: Of one head.
        causal: Whether a position sees only itself and what is before it.
    """

    depth: int
    width: int
    heads: int
    key_value_heads: int
    head_width: int
    causal: bool = False


def at_layers(name: str) -> bool:
    """Tell whether a feature is what goes into or comes out of layers, not something inside of them."""
    return name == "embeddings" or (name.startswith("layers.") and name.endswith(".hidden"))
