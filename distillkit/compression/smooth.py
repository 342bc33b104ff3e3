"""Balance activations and weights before quantisation, in an ONNX graph."""

from __future__ import annotations

from typing import Any

import numpy as np

from distillkit.compression.onnx_files import LINEAR
from distillkit.models.graph import Tensors

LEAST = 1e-5  # of what a channel is divided by


def smooth(model: Any, seen: list[Tensors], kept: set[str], strength: float) -> None:
    """Divide the inputs of linear layers by a factor a channel, and multiply their weights by it, in place.

    s_j = max|X_j|^α / max|W_j|^(1−α)   (SmoothQuant, Xiao et al. 2023, eq. 4)

    Layers that read the same tensor share its factors. The quotient is a node of its own, since the tensor is read by
    others too, such as the residual sum behind BERT's norms.

    Args:
        model: Of onnx.
        seen: What the graph is given, of each calibration batch.
        kept: Names of nodes that are not to be quantised.
        strength: α.
    """
    from onnx import helper, numpy_helper

    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    readers = _readers(graph, constants, kept)
    largest = _largest(model, list(readers), seen)
    for name, nodes in readers.items():
        weights = [numpy_helper.to_array(constants[node.input[1]]) for node in nodes]
        across = [_transposed(node) for node in nodes]  # weights are [in, out], transposed ones [out, in]
        heaviest = np.max([np.abs(w).max(axis=0 if t else 1) for w, t in zip(weights, across, strict=True)], axis=0)
        factors = _factors(largest[name], heaviest, strength)
        scaled = f"{name}.smooth"
        graph.initializer.append(numpy_helper.from_array(1 / factors, f"{scaled}.factors"))
        divide = helper.make_node("Mul", [name, f"{scaled}.factors"], [scaled], name=scaled)
        graph.node.insert(list(graph.node).index(nodes[0]), divide)
        for number, (node, weight, transposed) in enumerate(zip(nodes, weights, across, strict=True)):
            values = weight * (factors if transposed else factors[:, None])
            graph.initializer.append(numpy_helper.from_array(values, f"{scaled}.{number}.weight"))
            node.input[0], node.input[1] = scaled, f"{scaled}.{number}.weight"
    _drop_unused(graph)


def _readers(graph: Any, constants: dict[str, Any], kept: set[str]) -> dict[str, list[Any]]:
    """Return the linear layers that are to be quantised, by the tensor that they read, in the order of the graph."""
    found: dict[str, list[Any]] = {}
    for node in graph.node:
        weight = constants.get(node.input[1]) if node.op_type in LINEAR and node.name not in kept else None
        if weight is not None and len(weight.dims) == 2 and node.input[0] not in constants:
            found.setdefault(node.input[0], []).append(node)
    return found


def _largest(model: Any, names: list[str], seen: list[Tensors]) -> dict[str, np.ndarray]:
    """Run the graph on the calibration batches: tensor → the largest magnitude of each of its last dimension."""
    import onnxruntime
    from onnx import ModelProto, helper

    watched = ModelProto()
    watched.CopyFrom(model)
    outputs = {entry.name for entry in watched.graph.output}
    watched.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names if name not in outputs)
    session = onnxruntime.InferenceSession(watched.SerializeToString())
    taken = [entry.name for entry in session.get_inputs()]
    largest: dict[str, np.ndarray] = {}
    for fed in seen:
        for name, values in zip(names, session.run(names, {key: fed[key].numpy() for key in taken}), strict=True):
            here = np.abs(values).reshape(-1, values.shape[-1]).max(axis=0)
            largest[name] = np.maximum(largest[name], here) if name in largest else here
    return largest


def _factors(activations: np.ndarray, weights: np.ndarray, strength: float) -> np.ndarray:
    """Return what to divide each channel by; 1 for channels that are dead."""
    factors = np.maximum(activations, LEAST) ** strength / np.maximum(weights, LEAST) ** (1 - strength)
    return np.where((activations > 0) & (weights > 0), np.maximum(factors, LEAST), 1).astype(np.float32)


def _transposed(node: Any) -> bool:
    return any(attribute.name == "transB" and attribute.i for attribute in node.attribute)


def _drop_unused(graph: Any) -> None:
    read = {name for node in graph.node for name in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in read]:
        graph.initializer.remove(tensor)
