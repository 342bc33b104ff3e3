"""A model exported to ONNX, run by ONNX Runtime."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import GenerationConfig

from distillkit.models.graph import Graph, Tensors, as_past, require_onnx
from distillkit.models.live import whole_or_nothing
from distillkit.models.load import load_config, load_processor
from distillkit.models.onnx_writer import OnnxWriter
from distillkit.signals import Batch, Signal
from distillkit.tasks.base import Task

GRAPH = "model.onnx"  # beside it config.json, the tokenizer's files and, above 2 GB, model.onnx.data
ENCODER, DECODER = "encoder_model.onnx", "decoder_model.onnx"  # in place of it, of an encoder-decoder
PARAMETERS, NONZEROS = "distillkit.parameters", "distillkit.nonzeros"  # keys in the metadata of the (decoder's) graph
FRAGILE = "distillkit.fragile"  # likewise: names of modules that transformers keep in float32, with spaces between
MODULE = "distillkit.module"  # key in a node's metadata: the transformers module that it came from


@dataclass(frozen=True)
class OnnxModel:
    """A model folder with ONNX graphs, ready to run.

    Attributes:
        folder: The folder that it was loaded from and that `save` copies.
        task: What the model is for.
        tokenizer: Of transformers; or an image processor.
        graph: The model; of an encoder-decoder, the decoder.
        encoder: Of an encoder-decoder: turns a source into the keys and values that its decoder looks at.
    """

    folder: Path
    task: Task
    tokenizer: Any
    graph: Graph
    encoder: Graph | None = None

    @classmethod
    def load(cls, folder: Path, task: Task) -> OnnxModel:
        """Load a folder that `save` or an export wrote."""
        require_onnx()
        processor = load_processor(str(folder), task, str(folder))
        if (folder / GRAPH).is_file():
            return cls(folder, task, processor, Graph.load(folder / GRAPH))
        return cls(folder, task, processor, Graph.load(folder / DECODER), Graph.load(folder / ENCODER))

    @cached_property
    def config(self) -> Any:
        """The transformers config of the model that was exported."""
        return load_config(str(self.folder), str(self.folder))

    @cached_property
    def generation_config(self) -> GenerationConfig:
        """How transformers let the model that was exported write."""
        return GenerationConfig.from_pretrained(self.folder)

    @cached_property
    def writer(self) -> OnnxWriter:
        """What writes texts, by transformers' `generate`."""
        return OnnxWriter(self.graph, self.encoder, self.config, self.generation_config)

    def __call__(self, batch: Batch) -> Signal:
        """Return the logits of the batch's items, on the batch's device."""
        outputs = {name: values.to(batch.counted.device) for name, values in self.outputs(batch.inputs).items()}
        return Signal(self.task.item_logits(outputs, batch))

    def outputs(self, inputs: Mapping[str, Tensor]) -> Tensors:
        """Run the graphs on whole rows: name → output, on the CPU."""
        return self.graph.run(self.fed(inputs), list(self.task.output_names))

    def fed(self, inputs: Mapping[str, Tensor]) -> Tensors:
        """Return what the (decoder's) graph is given for whole rows."""
        past = self.graph.empty(len(next(iter(inputs.values()))))
        if self.encoder is None:
            return {**inputs, **past}
        read = inputs["decoder_input_ids"].clone()
        read[:, 0] = self.generation_config.decoder_start_token_id
        source = as_past(self.encoder.run(inputs))
        return {"input_ids": read, "encoder_attention_mask": inputs["attention_mask"], **past, **source}

    def count_parameters(self) -> int:
        """Count the parameters of the model that was exported, tied ones once."""
        return int(self.graph.metadata[PARAMETERS])

    def count_nonzeros(self) -> int:
        """Count those that were not zero when the model was exported."""
        return int(self.graph.metadata[NONZEROS])

    def save(self, folder: Path) -> None:
        """Copy the folder, whole or not at all."""
        whole_or_nothing(folder, lambda beside: shutil.copytree(self.folder, beside, dirs_exist_ok=True))


def is_onnx(path: str) -> bool:
    """Tell whether a model folder holds ONNX graphs."""
    folder = Path(path).expanduser()
    return any((folder / name).is_file() for name in (GRAPH, DECODER))
