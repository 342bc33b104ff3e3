"""Make one matrix product of linear layers that read the same tensor: query, key and value, or gate and up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from distillkit.models.onnx import MODULE


@dataclass(frozen=True)
class _Layer:
    """A linear layer: a product with a constant, and the bias that is added to it, if one is.

    Attributes:
        product: The node.
        added: The node that adds the bias; None without one.
    """

    product: Any
    added: Any

    @property
    def weight(self) -> Any:
        """The constant, `[in, out]`."""
        return self.product.inputs[1]

    @property
    def bias(self) -> Any:
        """The constant `[out]`, or None."""
        return next((value for value in self.added.inputs if _constant(value, 1)), None) if self.added else None

    @property
    def output(self) -> Any:
        """What the rest of the graph reads."""
        return (self.added or self.product).outputs[0]


def join(graph: Any) -> None:
    """Join layers in a graph of `onnx_ir`, in place; the numbers stay the same.

    At a batch of one short text, a product costs little more than starting it, and in int8 measuring the range of its
    input. The node's metadata then name all the modules that it came from.
    """
    for layers in _readers(graph).values():
        if len(layers) > 1:
            _join(graph, layers)


def _readers(graph: Any) -> dict[Any, list[_Layer]]:
    """Return the linear layers by the value that they read."""
    found: dict[Any, list[_Layer]] = {}
    for node in graph:
        if node.op_type == "MatMul" and _constant(node.inputs[1], 2) and len(node.inputs[1].uses()) == 1:
            found.setdefault(node.inputs[0], []).append(_Layer(node, _adding(node)))
    return found


def _adding(product: Any) -> Any:
    """Return the node that adds a constant bias to a product, if that is all that happens to it."""
    users = [node for node, _ in product.outputs[0].uses()]
    alone = len(users) == 1 and users[0].op_type == "Add" and not product.outputs[0].is_graph_output()
    return users[0] if alone and any(_constant(value, 1) for value in users[0].inputs) else None


def _constant(value: Any, dimensions: int) -> bool:
    return value is not None and value.const_value is not None and len(value.const_value.shape) == dimensions


def _join(graph: Any, layers: list[_Layer]) -> None:
    import onnx_ir as ir

    first = layers[0].product
    weights = [layer.weight.const_value.numpy() for layer in layers]
    widths = np.array([weight.shape[1] for weight in weights])
    name = f"{first.name}.joined"
    product = ir.node("MatMul", [first.inputs[0], _initializer(graph, f"{name}.weight", np.concatenate(weights, 1))])
    nodes = [product]
    if any(layer.added for layer in layers):
        biases = [
            np.zeros(width, np.float32) if layer.bias is None else layer.bias.const_value.numpy()
            for layer, width in zip(layers, widths, strict=True)
        ]
        bias = _initializer(graph, f"{name}.bias", np.concatenate(biases))
        nodes.append(ir.node("Add", [product.outputs[0], bias]))
    sizes = _initializer(graph, f"{name}.sizes", widths)
    nodes.append(ir.node("Split", [nodes[-1].outputs[0], sizes], {"axis": -1}, num_outputs=len(layers)))
    modules = " ".join(layer.product.metadata_props.get(MODULE, "") for layer in layers)
    for node in nodes:
        node.name = f"{name}.{node.op_type}"
        node.metadata_props[MODULE] = modules
        for number, value in enumerate(node.outputs):
            value.name = f"{node.name}.{number}"
    graph.insert_before(first, nodes)
    for layer, part in zip(layers, nodes[-1].outputs, strict=True):
        _replace(graph, layer, part)


def _initializer(graph: Any, name: str, values: np.ndarray) -> Any:
    import onnx_ir as ir

    value = ir.Value(name=name, const_value=ir.tensor(values, name=name))
    graph.register_initializer(value)
    return value


def _replace(graph: Any, layer: _Layer, part: Any) -> None:
    """Let a part of the joined product stand where a layer's output stood."""
    import onnx_ir as ir

    constants = [value for value in (layer.weight, layer.bias) if value is not None]
    part.shape, part.type = layer.output.shape, layer.output.type
    ir.convenience.replace_all_uses_with(layer.output, part, replace_graph_outputs=True)
    graph.remove([node for node in (layer.added, layer.product) if node is not None], safe=True)
    for value in constants:
        if not value.uses():
            del graph.initializers[value.name]
