"""What of a transformers model goes into which ONNX graph, and the tensors that its export is traced with."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from distillkit.models.graph import CACHE, PAST, PRESENT, Tensors
from distillkit.models.live import LiveModel
from distillkit.models.onnx import DECODER, ENCODER, GRAPH
from distillkit.signals import Batch

TRACED_PAST = 3  # positions of keys and values while tracing; any number after
KEYS = ("key", "value")


@dataclass(frozen=True)
class Part:
    """One graph to be.

    Attributes:
        file: Its name.
        module: Takes the inputs in order and returns the outputs in order; `module.model` is the transformers model.
        inputs: Name → tensor to trace with.
        outputs: Names.
        growing: Names of inputs → their dimensions that may be of any size, besides the rows.
    """

    file: str
    module: nn.Module
    inputs: Tensors
    outputs: list[str]
    growing: Mapping[str, tuple[int, ...]]


def parts_of(live: LiveModel, example: Batch, cache: bool) -> list[Part]:
    """Take a model apart into graphs: one, or encoder and decoder.

    Args:
        live: On the CPU.
        example: Some real rows.
        cache: Whether a language model takes and returns keys and values. An encoder-decoder always does.
    """
    inputs = {name: torch.cat([tensor, tensor])[:2].cpu() for name, tensor in example.inputs.items()}
    if live.model.config.is_encoder_decoder:
        return _encoder_decoder(live.model, inputs)
    names = list(live.task.output_names)
    if cache and writes(live):
        return [_cached(live.model, inputs, names)]
    growing = {} if live.task.modality == "image" else {name: (1,) for name in inputs}
    return [Part(GRAPH, _Whole(live.model, list(inputs), names), inputs, names, growing)]


def writes(live: LiveModel) -> bool:
    """Tell whether a model is one that writes text token by token."""
    return not live.task.adds_head and live.model.can_generate()


class _Whole(nn.Module):
    """A transformers model that takes its inputs in order and returns the named outputs alone."""

    def __init__(self, model: Any, names: list[str], wanted: list[str]) -> None:
        super().__init__()
        self.model, self.names, self.wanted = model, names, wanted

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        found = self.model(**dict(zip(self.names, inputs, strict=True)))
        return tuple(getattr(found, name) for name in self.wanted)


class _Cached(nn.Module):
    """A decoder that goes on after positions whose keys and values it is given."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.placed = "position_ids" in inspect.signature(model.forward).parameters

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        ids, mask, *past = inputs
        places = (mask.cumsum(dim=-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        placed = {"position_ids": places} if self.placed else {}
        given = {CACHE: _cache(past), **placed}
        found = self.model(input_ids=ids, attention_mask=mask, use_cache=True, **given)
        return (found.logits, *_flat(found[CACHE]))


class _Source(nn.Module):
    """The keys and values of a source that each layer of a decoder looks at: the encoder and what projects them."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        ids, mask = inputs
        found = self.model(input_ids=ids, attention_mask=mask, decoder_input_ids=ids[:, :1], use_cache=True)
        return _flat(found[CACHE].cross_attention_cache)


class _Target(nn.Module):
    """The decoder of an encoder-decoder, which is given the keys and values of source and earlier positions."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        ids, mask, *given = inputs
        half = len(given) // 2
        cache = EncoderDecoderCache(_cache(given[:half]), _cache(given[half:]))
        for layer in range(half // 2):
            cache.is_updated[layer] = True  # the source's are complete
        nothing = given[half].new_zeros(mask.shape[0], mask.shape[1], self.model.config.hidden_size)
        found = self.model(
            encoder_outputs=BaseModelOutput(nothing),  # its keys and values are there already
            attention_mask=mask,
            decoder_input_ids=ids,
            use_cache=True,
            **{CACHE: cache},
        )
        return (found.logits, *_flat(found[CACHE].self_attention_cache))


def _cached(model: Any, inputs: Tensors, names: list[str]) -> Part:
    with torch.no_grad():
        shown = _flat(model(**inputs, use_cache=True)[CACHE])
    keys = list(_names("", len(shown) // 2))
    past = dict(zip((PAST + key for key in keys), _begin(shown), strict=True))
    mask = nn.functional.pad(inputs["attention_mask"], (TRACED_PAST, 0), value=1)
    growing = {"input_ids": (1,), "attention_mask": (1,), **{name: (2,) for name in past}}
    fed = {"input_ids": inputs["input_ids"], "attention_mask": mask, **past}
    return Part(GRAPH, _Cached(model), fed, [*names, *(PRESENT + key for key in keys)], growing)


def _encoder_decoder(model: Any, inputs: Tensors) -> list[Part]:
    source = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}
    with torch.no_grad():
        shown = model(**inputs, use_cache=True)[CACHE]
    own, cross = _flat(shown.self_attention_cache), _flat(shown.cross_attention_cache)
    before, given = (list(_names(f"{which}.", len(own) // 2)) for which in ("decoder", "encoder"))
    past = dict(zip((PAST + key for key in before), _begin(own), strict=True))
    past |= dict(zip((PAST + key for key in given), cross, strict=True))
    target = {"input_ids": inputs["decoder_input_ids"], "encoder_attention_mask": inputs["attention_mask"], **past}
    growing = {name: (2,) if name.startswith(PAST) else (1,) for name in target}
    outputs = ["logits", *(PRESENT + key for key in before)]
    return [
        Part(ENCODER, _Source(model), source, [PRESENT + key for key in given], {name: (1,) for name in source}),
        Part(DECODER, _Target(model), target, outputs, growing),
    ]


def _names(which: str, layers: int) -> Iterator[str]:
    for layer in range(layers):
        yield from (f"{layer}.{which}{key}" for key in KEYS)


def _begin(tensors: Sequence[Tensor]) -> Iterator[Tensor]:
    """Return keys and values of a few positions."""
    for tensor in tensors:
        yield torch.zeros(tensor.shape[0], tensor.shape[1], TRACED_PAST, tensor.shape[3])


def _cache(past: Sequence[Tensor]) -> DynamicCache:
    return DynamicCache(list(zip(past[::2], past[1::2], strict=True)))


def _flat(cache: DynamicCache) -> tuple[Tensor, ...]:
    """Return keys and values layer by layer; a cache may have room for more layers than the decoder has."""
    used = [layer for layer in cache.layers if layer.is_initialized]
    return tuple(tensor for layer in used for tensor in (layer.keys, layer.values))
