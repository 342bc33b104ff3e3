"""Store a tied output head of an int8 ONNX graph once: the codes of the embedding are those of the head."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

FLOAT = 1  # onnx's number of float32


def store_once(path: Path, tied: Mapping[str, str], large: bool) -> None:
    """Rewrite a quantised graph, in place.

    The quantiser stores the embedding with one scale, and its transpose, the head, with a scale for every token. What
    is kept is the head's: it is transposed by a node, which ONNX Runtime does once while loading, and the embedding
    is looked up in it and multiplied by the scales of the tokens.

    Args:
        path: Of the graph.
        tied: Constants of the graph as it was in float: transposed → what it was made of.
        large: Whether its weights have a file of their own.
    """
    import onnx

    model = onnx.load(path)
    done = [_share(model.graph, embedding, head) for head, embedding in tied.items()]
    if any(done):
        del model.graph.value_info[:]  # which knows other types
        path.with_name(f"{path.name}.data").unlink(missing_ok=True)
        onnx.save(model, path, save_as_external_data=large, location=f"{path.name}.data")


def _share(graph: Any, embedding: str, head: str) -> bool:
    """Let an embedding and a head share their codes, if both were quantised."""
    from onnx import helper, numpy_helper

    constants = {tensor.name: tensor for tensor in graph.initializer}
    ours, theirs = f"{embedding}_quantized", f"{head}_quantized"
    if ours not in constants or theirs not in constants:
        return False
    assert not numpy_helper.to_array(constants[f"{head}_zero_point"]).any()  # int8 weights are symmetric
    codes = numpy_helper.to_array(constants[theirs])
    constants[ours].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(codes.T), ours))
    graph.initializer.remove(constants[theirs])
    for node in [node for node in graph.node if node.op_type == "Gather" and node.input[0] == ours]:
        _look_up(graph, node, f"{head}_scale")
    graph.node.insert(0, helper.make_node("Transpose", [ours], [theirs], perm=[1, 0]))
    return True


def _look_up(graph: Any, gather: Any, scale: str) -> None:
    """Multiply codes that are looked up by the scale of each token, in place of one scale for all."""
    from onnx import helper, numpy_helper

    old = next(node for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] == gather.output[0])
    place, made = list(graph.node).index(old), old.output[0]
    codes, scales, each, last = (f"{made}.{part}" for part in ("codes", "scale", "scales", "last"))
    graph.initializer.append(numpy_helper.from_array(np.array([-1]), last))
    for node in (
        helper.make_node("Mul", [codes, each], [made]),
        helper.make_node("Unsqueeze", [scales, last], [each]),
        helper.make_node("Gather", [scale, gather.input[1]], [scales]),
        helper.make_node("Cast", [gather.output[0]], [codes], to=FLOAT),
    ):
        graph.node.insert(place, node)
    graph.node.remove(old)
