"""The ONNX graphs of a folder as files that can be changed: what their nodes came from, and constants made plain."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distillkit.models.names import matching
from distillkit.models.onnx import FRAGILE, MODULE

LINEAR = ("MatMul", "Gemm")


@dataclass(frozen=True)
class GraphFile:
    """A graph read from a folder.

    Attributes:
        name: Of the file.
        model: Of onnx, with its weights.
        large: Whether its weights need a file of their own.
        tied: Constants that are transposed ones: name → what it was made of.
    """

    name: str
    model: Any
    large: bool
    tied: dict[str, str]

    def write(self, path: Path) -> None:
        """Write it, and beside it its weights if they are large."""
        import onnx

        onnx.save(self.model, path, save_as_external_data=self.large, location=f"{path.name}.data")

    def nodes_of(self, modules: set[str]) -> list[str]:
        """Return the names of the nodes that came from some modules, also as the quantiser renames them."""
        kept = [node.name for node in self.model.graph.node if modules.intersection(modules_of_node(node))]
        return kept + [f"{name}_MatMul" for name in kept]  # of a Gemm


def read_graphs(folder: Path) -> list[GraphFile]:
    """Read the graphs of a folder, with their constants in the shape that they are used in."""
    import onnx

    graphs = []
    for path in sorted(folder.glob("*.onnx")):
        model = onnx.load(path)
        del model.graph.value_info[:]  # the quantiser trips over shapes that it changes
        tied = fold_transposes(model.graph)
        graphs.append(GraphFile(path.name, model, path.with_name(f"{path.name}.data").exists(), tied))
    return graphs


def excluded(graphs: list[GraphFile], patterns: list[str]) -> set[str]:
    """Return the modules, of any of the graphs, that match.

    Raises:
        UserError: If a pattern matches nothing.
    """
    return matching(modules_of(graphs), patterns, "exclude")


def modules_of(graphs: list[GraphFile]) -> list[str]:
    """Return the modules that the nodes of graphs came from."""
    return sorted({module for file in graphs for node in file.model.graph.node for module in modules_of_node(node)})


def fold_transposes(graph: Any) -> dict[str, str]:
    """Transpose constants for good, and return what was made of what.

    A tied output head is the embedding, transposed at run time; the quantiser would keep its product in float and
    convert the whole embedding at every call. As a constant of its own it costs a byte a weight and is much faster.
    """
    from onnx import numpy_helper

    constants, made = {tensor.name: tensor for tensor in graph.initializer}, {}
    for node in [node for node in graph.node if node.op_type == "Transpose" and node.input[0] in constants]:
        order = next((list(attribute.ints) for attribute in node.attribute if attribute.name == "perm"), None)
        values = numpy_helper.to_array(constants[node.input[0]]).transpose(order)
        graph.initializer.append(numpy_helper.from_array(values.copy(), node.output[0]))
        graph.node.remove(node)
        made[node.output[0]] = node.input[0]
    return made


def modules_of_node(node: Any) -> list[str]:
    """Return the transformers modules that a node came from, such as "bert.encoder.layer.0.output.dense".

    There are several where their products were joined.
    """
    return next((entry.value.split() for entry in node.metadata_props if entry.key == MODULE), [])


def fragile(model: Any) -> set[str]:
    """Return the linear maps in float whose inputs have outliers, by what transformers keep in float32: T5's `wo`."""
    names = {name for entry in model.metadata_props if entry.key == FRAGILE for name in entry.value.split()}
    linear = [node for node in model.graph.node if node.op_type in LINEAR]
    return {module for node in linear for module in modules_of_node(node) if names.intersection(module.split("."))}


def bytewise(model: Any) -> bool:
    """Tell whether a graph has constants of a byte a weight."""
    from onnx import TensorProto

    kinds = (TensorProto.INT8, TensorProto.UINT8)  # linear layers, embeddings
    return any(tensor.data_type in kinds for tensor in model.graph.initializer)
