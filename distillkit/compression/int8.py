"""Quantise an ONNX model: int8 weights per channel, and int8 activations."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Literal

from distillkit.compression.export import onnx_model
from distillkit.compression.onnx_files import GraphFile, bytewise, excluded, fragile, read_graphs
from distillkit.compression.onnx_int8 import METHODS, quantise_dynamically, quantise_statically
from distillkit.compression.onnx_tied import store_once
from distillkit.compression.smooth import smooth
from distillkit.compression.variant import TORCH, Context, Kind, Step, Variant
from distillkit.errors import UserError, did_you_mean
from distillkit.models.graph import Tensors, require_onnx
from distillkit.models.live import LiveModel
from distillkit.models.names import matching
from distillkit.models.onnx import ENCODER, OnnxModel
from distillkit.signals import Batch

CAUTION = "{} stays in float, since its inputs have outliers; smooth=0.5 rounds it too, with calibration rows"


class OnnxInt8(Step):
    """Export to ONNX (unless that is done) and quantise linear layers and embeddings to int8.

    Args:
        embeddings: Quantise the embeddings too.
        exclude: Modules to keep in float, by shell-style patterns such as "*.layer.0.*"; null: those that transformers
            keep in float32 too, such as T5's `wo`, unless `smooth` takes care of their outliers.
        activations: "dynamic": their range is measured at every call; "static": it is fixed by calibration rows.
        method: How "static" ranges follow from what was seen: "minmax", "entropy" or "percentile".
        smooth: From 0 to 1: how much of the activations' outliers the weights take over (SmoothQuant); null for none.
    """

    accepts = TORCH | {Kind.onnx}
    gives = Kind.int8

    def __init__(
        self,
        embeddings: bool = True,
        exclude: list[str] | None = None,
        activations: Literal["dynamic", "static"] = "dynamic",
        method: str = "minmax",
        smooth: float | None = None,
    ) -> None:
        require_onnx()
        if method not in METHODS:
            raise UserError(f"unknown method '{method}'", where="method", fix=did_you_mean(method, list(METHODS)))
        if smooth is not None and not 0 <= smooth <= 1:
            raise UserError(f"must be from 0 to 1 or null, got {smooth}", where="smooth")
        self.embeddings = embeddings
        self.exclude = exclude
        self.activations = activations
        self.method = method
        self.smooth = smooth
        self.calibrates = activations == "static" or smooth is not None

    def check(self, start: LiveModel | OnnxModel) -> None:
        """Refuse patterns that match nothing."""
        if isinstance(start, LiveModel):
            matching((name for name, _ in start.model.named_modules()), self.exclude or [], "exclude")

    def __call__(self, variant: Variant, context: Context) -> Variant:
        """Quantise.

        Raises:
            UserError: If nothing is left to quantise.
        """
        import onnx

        made = self.make(onnx_model(variant, context), context)
        written = [onnx.load(path, load_external_data=False) for path in made.folder.glob("*.onnx")]
        if not any(map(bytewise, written)):
            raise UserError("nothing is left to quantise", where="exclude")
        notes = {"dtype": "int8", "runtime": "onnxruntime", "activations": self.activations}
        in_float = {module.rpartition(".")[2] for model in written for module in fragile(model)}
        if in_float and self.exclude is None:
            notes["caution"] = CAUTION.format(", ".join(sorted(in_float)))
        return Variant(made, notes=notes)

    def make(self, source: OnnxModel, context: Context) -> OnnxModel:
        """Quantise an ONNX model."""
        batches = context.calibration.batches if self.calibrates else []
        folder = context.folder / "int8"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(source.folder, folder, ignore=shutil.ignore_patterns("*.onnx", "*.onnx.data"))
        graphs = read_graphs(source.folder)
        kept = self.kept(graphs)
        for file in graphs:
            seen = [fed(source, file.name, batch) for batch in batches]
            self._quantise(file, folder / file.name, file.nodes_of(kept), seen)
        return OnnxModel.load(folder, source.task)

    def kept(self, graphs: list[GraphFile]) -> set[str]:
        """Return the modules that stay in float."""
        if self.exclude is not None:
            return excluded(graphs, self.exclude)
        return set() if self.smooth is not None else {module for file in graphs for module in fragile(file.model)}

    def _quantise(self, file: GraphFile, target: Path, kept: list[str], seen: list[Tensors]) -> None:
        if self.smooth is not None:
            smooth(file.model, seen, set(kept), self.smooth)
        if self.activations == "dynamic":
            quantise_dynamically(file, target, kept, self.embeddings)
        else:
            quantise_statically(file, target, kept, self.embeddings, seen, self.method)
        store_once(target, file.tied, file.large)


def fed(model: OnnxModel, graph: str, batch: Batch) -> Tensors:
    """Return what one of a model's graphs is given for a batch."""
    inputs = batch.to(batch.counted.device).inputs
    return dict(inputs) if graph == ENCODER else model.fed(inputs)
