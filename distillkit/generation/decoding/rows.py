"""Rows under way in a model: read prompts, go on by one token, let rows leave and others take their places."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from distillkit.generation.decoding.columns import ColumnLayer, Columns, SourceLayer
from distillkit.models.anatomy import decoder_start
from distillkit.tasks.base import attention_mask, pad


class CausalRows:
    """Rows of a decoder.

    Args:
        model: Of transformers, for causal language modelling.
        padding: A token id.
    """

    def __init__(self, model: Any, padding: int) -> None:
        self.model = model
        self.padding = padding
        self.accepts = inspect.signature(model.forward).parameters
        self.cache_name = "cache" if "cache" in self.accepts else "past_key_values"
        self.columns = Columns(torch.zeros(0, dtype=torch.int64))
        self.layers: list[Any] = []

    @staticmethod
    def suits(model: Any) -> bool:
        """Tell whether the model keeps nothing of a row but keys and values, in a cache that it is given."""
        accepts = inspect.signature(model.forward).parameters
        if "cache" not in accepts and "past_key_values" not in accepts:
            return False
        kinds = {type(layer) for layer in DynamicCache(config=_decoder_config(model)).layers}
        return bool(kinds) and kinds <= {DynamicLayer, DynamicSlidingWindowLayer}

    def fresh(self) -> CausalRows:
        """Return other rows of the same model."""
        return type(self)(self.model, self.padding)

    def seen(self, prompt: list[int]) -> list[int]:
        """Return the tokens that stand before an answer."""
        return prompt

    def read(self, prompts: Sequence[list[int]]) -> Tensor:
        """Begin with prompts; return the logits `[rows, vocab]` of the token after each."""
        ids, mask = pad(list(prompts), self.padding), attention_mask(list(prompts))
        self.columns = Columns(mask.sum(dim=1))
        places = (torch.arange(ids.shape[1]) + self.columns.lengths.unsqueeze(1)) % ids.shape[1]  # padding comes first
        mask = mask.gather(1, places)
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        logits = self._run({"input_ids": ids.gather(1, places), "attention_mask": mask, "position_ids": positions})
        self.columns.stop = ids.shape[1]
        return logits

    def go_on(self, tokens: Tensor) -> Tensor:
        """Append a token to each row, int64 `[rows]`; return the logits `[rows, vocab]` of the next one."""
        mask = self._next_column()
        positions = self.columns.lengths.unsqueeze(1) - 1
        logits = self._run({"input_ids": tokens.unsqueeze(1), "attention_mask": mask, "position_ids": positions})
        self.columns.stop += 1
        return logits

    def keep(self, rows: Sequence[int]) -> None:
        """Keep some rows; one that is named several times is there as often."""
        chosen = torch.tensor(rows)
        self.columns.lengths = self.columns.lengths[chosen]
        self._fit()
        for layer in self.layers:
            layer.keep(chosen.to(self.model.device))
        self.columns.start, self.columns.stop = 0, self.columns.stop - self.columns.start

    def put(self, rows: Sequence[int], other: CausalRows) -> None:
        """Put other rows, none longer than the longest one here, in the places of some."""
        places = torch.tensor(rows)
        other._fit()
        for layer, theirs in zip(self.layers, other.layers, strict=True):
            layer.put(places.to(self.model.device), theirs)
        self.columns.lengths[places] = other.columns.lengths

    def vacate(self, rows: Sequence[int]) -> None:
        """Let some rows be computed for nothing until others are put in their places."""
        self.columns.lengths[torch.tensor(rows, dtype=torch.int64)] = 0

    def _fit(self) -> None:
        self.columns.start = self.columns.stop - int(self.columns.lengths.max())

    def _next_column(self) -> Tensor:
        """Make room for a token of each row; return the mask `[rows, width]`, the new column included."""
        columns = self.columns
        if columns.stop == self.layers[0].capacity:
            self.keep(range(len(columns.lengths)))
        columns.lengths += 1
        columns.start = columns.stop + 1 - int(columns.lengths.max())
        return columns.mask()

    def _new_layers(self) -> list[ColumnLayer]:
        made = DynamicCache(config=_decoder_config(self.model)).layers
        return [ColumnLayer(self.columns, layer.is_sliding) for layer in made]

    def _run(self, inputs: dict[str, Tensor]) -> Tensor:
        if not self.layers:
            self.layers = self._new_layers()
            self.cache = Cache(layers=self.layers)
        inputs = {name: tensor.to(self.model.device) for name, tensor in inputs.items() if name in self.accepts}
        return self._logits({**inputs, self.cache_name: self.cache})

    def _logits(self, inputs: dict[str, Any]) -> Tensor:
        last = {"logits_to_keep": 1} if "logits_to_keep" in self.accepts else {}
        return self.model(**inputs, **last, use_cache=True).logits[:, -1]


class Seq2SeqRows(CausalRows):
    """Rows of a decoder that looks at what an encoder has read. A prompt is a source."""

    def __init__(self, model: Any, padding: int) -> None:
        super().__init__(model, padding)
        self.sources = torch.zeros(0, dtype=torch.int64)  # tokens of each row's source

    def seen(self, prompt: list[int]) -> list[int]:  # noqa: ARG002
        """Return the tokens that stand before a target."""
        return [decoder_start(self.model)]

    def read(self, prompts: Sequence[list[int]]) -> Tensor:
        """Read sources; return the logits `[rows, vocab]` of the first token of each target."""
        mask = attention_mask(list(prompts))
        self.sources = mask.sum(dim=1)
        self.columns = Columns(torch.ones_like(self.sources))
        self.layers = self._new_layers()
        self.source_layers = [SourceLayer() for _ in self.layers]
        self.cache = EncoderDecoderCache(Cache(layers=self.layers), Cache(layers=self.source_layers))
        begin = torch.full((len(prompts), 1), decoder_start(self.model))
        inputs = {"input_ids": pad(list(prompts), self.padding), "attention_mask": mask, "decoder_input_ids": begin}
        logits = self._run(inputs)
        self.columns.stop = 1
        return logits

    def go_on(self, tokens: Tensor) -> Tensor:
        """Append a token to each target, int64 `[rows]`; return the logits `[rows, vocab]` of the next one."""
        mask, width = self._next_column(), self.source_layers[0].keys.shape[2]
        inputs = {
            "attention_mask": (torch.arange(width) < self.sources.unsqueeze(1)).long(),
            "decoder_input_ids": tokens.unsqueeze(1),
            "decoder_attention_mask": mask,
        }
        inputs = {name: tensor.to(self.model.device) for name, tensor in inputs.items()}
        nothing = torch.zeros(1, device=self.model.device, dtype=self.model.dtype)  # its keys and values are kept
        read = BaseModelOutput(last_hidden_state=nothing.expand(len(tokens), width, 1))
        with _Positions(self.model, self.columns.lengths.unsqueeze(1) - 1):
            logits = self._logits({**inputs, "encoder_outputs": read, self.cache_name: self.cache})
        self.columns.stop += 1
        return logits

    def keep(self, rows: Sequence[int]) -> None:
        """Keep some rows; one that is named several times is there as often."""
        chosen = torch.tensor(rows)
        self.sources = self.sources[chosen]
        for layer in self.source_layers:
            layer.keep(chosen.to(self.model.device), int(self.sources.max()))
        super().keep(rows)

    def put(self, rows: Sequence[int], other: CausalRows) -> None:
        """Put other rows, no source of which is longer than those here, in the places of some."""
        assert isinstance(other, Seq2SeqRows)
        places = torch.tensor(rows)
        for layer, theirs in zip(self.source_layers, other.source_layers, strict=True):
            layer.put(places.to(self.model.device), theirs)
        self.sources[places] = other.sources
        super().put(rows, other)


def _decoder_config(model: Any) -> Any:
    """Return the config that tells the decoder's layers: an encoder may have more of them, or fewer."""
    if model.config.is_encoder_decoder:
        return model.get_decoder().config
    return model.config.get_text_config(decoder=True)


class _Positions:
    """Tell a decoder that counts positions by its cache the position `[rows, 1]` of each row.

    Args:
        model: An encoder-decoder of transformers.
        positions: int64, of the token under way.
    """

    def __init__(self, model: Any, positions: Tensor) -> None:
        self.module = dict(model.get_decoder().named_children()).get("embed_positions")
        self.positions = positions.to(model.device)

    def __enter__(self) -> None:
        self.handles = []
        if self.module is not None and "position_ids" in inspect.signature(self.module.forward).parameters:
            self.handles.append(self.module.register_forward_pre_hook(self._replace, with_kwargs=True))
            self.handles.append(self.module.register_forward_hook(self._shape))

    def __exit__(self, *error: object) -> None:
        for handle in self.handles:
            handle.remove()

    def _replace(self, module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:  # noqa: ARG002
        return given, named | {"position_ids": self.positions}

    def _shape(self, module: nn.Module, given: tuple[Any, ...], found: Tensor) -> Tensor:  # noqa: ARG002
        return found.reshape(*self.positions.shape, -1)  # some modules take the positions of one row alone


@torch.no_grad()
def can_stagger(model: Any, padding: int) -> bool:
    """Try whether rows that began at different times get the logits that they get alone, without a cache.

    Some models count positions in ways that no argument changes.
    """
    rows = Seq2SeqRows if model.config.is_encoder_decoder else CausalRows
    if not rows.suits(model):
        return False
    ids = [index for index in range(model.config.get_text_config(decoder=True).vocab_size) if index != padding]
    long, short, said = ids[3:9], ids[5:8], ids[9:13]
    ours, other = rows(model, padding), rows(model, padding)
    ours.read([long, long])
    ours.go_on(torch.tensor(said[:1] * 2))
    other.read([short])
    ours.put([1], other)
    found = ours.go_on(torch.tensor([said[1], said[2]])).float()
    alone = [_plain(model, long, said[:2]), _plain(model, short, said[2:3])]
    expected = torch.stack(alone)
    tolerance = 0.02 if model.dtype == torch.float32 else 0.3  # in units of how much logits differ from each other
    return bool((found - expected).abs().max() <= tolerance * expected.std())


def _plain(model: Any, prompt: list[int], said: list[int]) -> Tensor:
    begin = torch.tensor([prompt], device=model.device)
    if not model.config.is_encoder_decoder:
        return (
            model(input_ids=torch.tensor([prompt + said], device=model.device), use_cache=False).logits[0, -1].float()
        )
    target = torch.tensor([[decoder_start(model), *said]], device=model.device)
    return model(input_ids=begin, decoder_input_ids=target, use_cache=False).logits[0, -1].float()
