"""Let an exported language model write, by transformers' own generation: greedy, by beam search or by chance."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutputWithPast, Seq2SeqLMOutput

from distillkit.errors import UserError
from distillkit.models.graph import CACHE, PAST, PRESENT, Graph, Tensors, as_past

OWN, SOURCE = "decoder.", "encoder."  # in the names of an encoder-decoder's keys and values


class OnnxWriter(PreTrainedModel, GenerationMixin):
    """What `generate` asks of a model, answered by ONNX graphs with keys and values.

    Args:
        graph: Of the model, or of its decoder, exported with its cache.
        encoder: The other graph of an encoder-decoder.
        config: Of transformers.
        generation_config: Likewise.

    Raises:
        UserError: If the graph takes no keys and values.
    """

    _supports_sdpa = True
    device = torch.device("cpu")
    dtype = torch.float32

    def __init__(self, graph: Graph, encoder: Graph | None, config: Any, generation_config: Any) -> None:
        if not graph.caches:
            raise UserError("an export without keys and values writes no text", fix="export it with cache=true")
        super().__init__(config)
        self.graph, self.source = graph, encoder
        self.generation_config = generation_config
        self.layers = sum(name.endswith("key") and SOURCE not in name for name in graph.empty(1))

    def get_encoder(self, *_: Any, **__: Any) -> _Encoder:
        """Return what answers for the encoder: the source itself, which the decoder's cache is made of later."""
        return _Encoder()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        encoder_outputs: Any = None,
        **inputs: Any,
    ) -> CausalLMOutputWithPast | Seq2SeqLMOutput:
        """Answer for the last positions, after those whose keys and values are there."""
        cache = inputs.get(CACHE)
        if decoder_input_ids is not None:
            return self._go_on(decoder_input_ids, attention_mask, encoder_outputs[0], cache)
        assert input_ids is not None
        assert attention_mask is not None
        past = self._past(cache, "", len(input_ids))
        found = self.graph.run({"input_ids": input_ids, "attention_mask": attention_mask, **past})
        return CausalLMOutputWithPast(logits=found["logits"], **{CACHE: self._cache(found, PRESENT)})

    def _go_on(self, ids: Tensor, mask: Tensor | None, source: Tensor, cache: Any) -> Seq2SeqLMOutput:
        assert mask is not None
        cross = None if cache is None else cache.cross_attention_cache
        if cross is None or cross.get_seq_length() == 0:
            assert self.source is not None
            given = as_past(self.source.run({"input_ids": source, "attention_mask": mask}))
        else:
            given = self._past(cross, SOURCE, len(ids))
        past = self._past(None if cache is None else cache.self_attention_cache, OWN, len(ids))
        found = self.graph.run({"input_ids": ids, "encoder_attention_mask": mask, **past, **given})
        both = EncoderDecoderCache(self._cache(found, PRESENT, OWN), self._cache(given, PAST, SOURCE))
        return Seq2SeqLMOutput(logits=found["logits"], **{CACHE: both})

    def _past(self, cache: Any, which: str, rows: int) -> Tensors:
        """Return a cache as the graph takes it."""
        if cache is None or cache.get_seq_length() == 0:
            return {name: values for name, values in self.graph.empty(rows).items() if which in name}
        keys = {f"{PAST}{index}.{which}key": layer.keys for index, layer in enumerate(cache.layers)}
        return keys | {f"{PAST}{index}.{which}value": layer.values for index, layer in enumerate(cache.layers)}

    def _cache(self, tensors: Tensors, begin: str, which: str = "") -> DynamicCache:
        """Return keys and values as transformers' cache."""
        return DynamicCache(
            [
                (tensors[f"{begin}{layer}.{which}key"], tensors[f"{begin}{layer}.{which}value"])
                for layer in range(self.layers)
            ]
        )


class _Encoder:
    """Hands the source's token ids on in place of hidden states: `generate` repeats them for its beams."""

    def __call__(self, input_ids: Tensor, **_: Any) -> BaseModelOutput:
        return BaseModelOutput(input_ids)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> BaseModelOutput:
        """Name what is taken, for `generate` to look at."""
        return self(input_ids, attention_mask=attention_mask)
