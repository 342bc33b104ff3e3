"""Quantise an ONNX model: int8 weights per channel, activations quantised as they come."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from distillkit.compression.export import check_exportable, onnx_model, quiet
from distillkit.compression.variant import TORCH, Context, Kind, Step, Variant, matching
from distillkit.errors import UserError
from distillkit.models.live import LiveModel
from distillkit.models.onnx import GRAPH, MODULE, OnnxModel, require_onnx

LINEAR = ("MatMul", "Gemm")


class OnnxInt8(Step):
    """Export to ONNX (unless that is done) and quantise linear layers and embeddings to int8.

    Args:
        embeddings: Quantise the embeddings too.
        exclude: Modules to keep in float, by shell-style patterns such as "*.layer.0.*".
    """

    accepts = TORCH | {Kind.onnx}
    gives = Kind.int8

    def __init__(self, embeddings: bool = True, exclude: list[str] | None = None) -> None:
        require_onnx()
        self.embeddings = embeddings
        self.exclude = exclude or []

    def check(self, start: LiveModel | OnnxModel) -> None:
        """Refuse what cannot be exported, and patterns that match nothing."""
        check_exportable(start)
        if isinstance(start, LiveModel):
            matching((name for name, _ in start.model.named_modules()), self.exclude, "exclude")

    def __call__(self, variant: Variant, context: Context) -> Variant:
        """Quantise."""
        source = onnx_model(variant, context)
        folder = context.folder / "int8"
        shutil.copytree(source.folder, folder, ignore=shutil.ignore_patterns(f"{GRAPH}*"), dirs_exist_ok=True)
        operators = [*LINEAR, "Gather"] if self.embeddings else list(LINEAR)
        quantise(source.folder / GRAPH, folder / GRAPH, operators, self.exclude)
        notes = {"dtype": "int8", "runtime": "onnxruntime"}
        return Variant(OnnxModel.load(folder, source.task), notes=notes)


def quantise(source: Path, target: Path, operators: list[str], exclude: list[str]) -> None:
    """Quantise the constant weights of some operators: symmetric, linear ones per channel.

    Raises:
        UserError: If a pattern matches nothing, or nothing is left to quantise.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    graph = onnx.load(source)
    del graph.graph.value_info[:]  # the quantiser trips over shapes that it changes
    fold_transposes(graph.graph)
    origins = {node.name: module_of(node) for node in graph.graph.node}
    modules = matching(sorted(set(origins.values()) - {""}), exclude, "exclude")
    large = source.with_name(f"{GRAPH}.data").exists()
    kept = [node for node, module in origins.items() if module in modules]
    kept += [f"{node}_MatMul" for node in kept]  # what the quantiser renames a Gemm to
    prepared = target.with_name("prepared.onnx")
    onnx.save(graph, prepared, save_as_external_data=large, location="prepared.onnx.data")
    with quiet():
        quantize_dynamic(
            prepared,
            target,
            per_channel=True,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=operators,
            nodes_to_exclude=kept,
            use_external_data_format=large,
        )
    prepared.unlink()
    prepared.with_name("prepared.onnx.data").unlink(missing_ok=True)
    written = onnx.load(target, load_external_data=False)
    bytewise = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)  # linear layers, embeddings
    if not any(tensor.data_type in bytewise for tensor in written.graph.initializer):
        raise UserError("nothing is left to quantise", where="exclude")


def fold_transposes(graph: Any) -> None:
    """Transpose constants for good.

    A tied output head is the embedding, transposed at run time; the quantiser would keep its product in float and
    convert the whole embedding at every call. As a constant of its own it costs a byte a weight and is much faster.
    """
    from onnx import numpy_helper

    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in [node for node in graph.node if node.op_type == "Transpose" and node.input[0] in constants]:
        order = next((list(attribute.ints) for attribute in node.attribute if attribute.name == "perm"), None)
        values = numpy_helper.to_array(constants[node.input[0]]).transpose(order)
        graph.initializer.append(numpy_helper.from_array(values.copy(), node.output[0]))
        graph.node.remove(node)


def module_of(node: Any) -> str:
    """Return the transformers module that a node came from, such as "bert.encoder.layer.0.output.dense"."""
    return next((entry.value for entry in node.metadata_props if entry.key == MODULE), "")
