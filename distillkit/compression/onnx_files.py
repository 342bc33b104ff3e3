"""The ONNX graphs of a folder as files that can be changed: what their nodes came from, and constants made plain."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distillkit.compression.variant import matching
from distillkit.models.onnx import MODULE

LINEAR = ("MatMul", "Gemm")


@dataclass(frozen=True)
class GraphFile:
    """A graph read from a folder.

    Attributes:
        name: Of the file.
        model: Of onnx, with its weights.
        large: Whether its weights need a file of their own.
    """

    name: str
    model: Any
    large: bool

    def write(self, path: Path) -> None:
        """Write it, and beside it its weights if they are large."""
        import onnx

        onnx.save(self.model, path, save_as_external_data=self.large, location=f"{path.name}.data")

    def nodes_of(self, modules: set[str]) -> list[str]:
        """Return the names of the nodes that came from some modules, also as the quantiser renames them."""
        kept = [node.name for node in self.model.graph.node if module_of(node) in modules]
        return kept + [f"{name}_MatMul" for name in kept]  # of a Gemm


def read_graphs(folder: Path) -> list[GraphFile]:
    """Read the graphs of a folder, with their constants in the shape that they are used in."""
    import onnx

    graphs = []
    for path in sorted(folder.glob("*.onnx")):
        model = onnx.load(path)
        del model.graph.value_info[:]  # the quantiser trips over shapes that it changes
        fold_transposes(model.graph)
        graphs.append(GraphFile(path.name, model, path.with_name(f"{path.name}.data").exists()))
    return graphs


def excluded(graphs: list[GraphFile], patterns: list[str]) -> set[str]:
    """Return the modules, of any of the graphs, that match.

    Raises:
        UserError: If a pattern matches nothing.
    """
    names = {module_of(node) for file in graphs for node in file.model.graph.node}
    return matching(sorted(names - {""}), patterns, "exclude")


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


def bytewise(path: Path) -> bool:
    """Tell whether a graph has constants of a byte a weight."""
    import onnx

    written = onnx.load(path, load_external_data=False)
    kinds = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)  # linear layers, embeddings
    return any(tensor.data_type in kinds for tensor in written.graph.initializer)
