"""Quantise one ONNX graph to int8: weights once, activations as they come or by ranges that were seen before."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np

from distillkit.compression.export import quiet
from distillkit.compression.onnx_files import LINEAR, GraphFile
from distillkit.models.graph import Tensors

METHODS = {"minmax": "MinMax", "entropy": "Entropy", "percentile": "Percentile"}
MOST = 99.999  # per cent of the values that the percentile method covers


def quantise_dynamically(file: GraphFile, target: Path, kept: list[str], embeddings: bool) -> None:
    """Quantise linear layers (per channel) and embeddings; activations are quantised as they come, per tensor."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with quiet(), _prepared(file, target) as prepared:
        quantize_dynamic(
            prepared,
            target,
            per_channel=True,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=[*LINEAR, "Gather"] if embeddings else list(LINEAR),
            nodes_to_exclude=kept,
            use_external_data_format=file.large,
        )


def quantise_statically(
    file: GraphFile, target: Path, kept: list[str], embeddings: bool, seen: list[Tensors], method: str
) -> None:
    """Quantise with ranges of activations that are fixed beforehand.

    Args:
        file: The graph.
        target: The file to write.
        kept: Names of nodes that stay in float.
        embeddings: Quantise the embeddings too.
        seen: What the graph is given, of each calibration batch.
        method: How ranges follow from values: see `METHODS`.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_dynamic, quantize_static

    with quiet(), redirect_stdout(io.StringIO()), _prepared(file, target) as prepared:
        source = prepared
        if embeddings:  # which have no activations
            source = target.with_name("embeddings.onnx")
            quantize_dynamic(
                prepared,
                source,
                weight_type=QuantType.QInt8,
                op_types_to_quantize=["Gather"],
                nodes_to_exclude=kept,
                use_external_data_format=file.large,
            )
        try:
            quantize_static(
                source,
                target,
                _Reader(seen, file.model.graph, alike=method != "minmax"),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                op_types_to_quantize=list(LINEAR),
                nodes_to_exclude=kept,
                use_external_data_format=file.large,
                calibrate_method=CalibrationMethod[METHODS[method]],
                extra_options={"MatMulConstBOnly": True, "CalibPercentile": MOST},
            )
        finally:
            target.with_name("embeddings.onnx").unlink(missing_ok=True)
            target.with_name("embeddings.onnx.data").unlink(missing_ok=True)


@contextmanager
def _prepared(file: GraphFile, target: Path) -> Iterator[Path]:
    """Hold a graph in a file beside the target for as long as the quantiser reads it."""
    path = target.with_name("prepared.onnx")
    file.write(path)
    try:
        yield path
    finally:
        path.unlink()
        path.with_name("prepared.onnx.data").unlink(missing_ok=True)


class _Reader:
    """Calibration batches one by one, as ONNX Runtime asks for them."""

    def __init__(self, seen: list[Tensors], graph: Any, alike: bool) -> None:
        names = {entry.name for entry in graph.input}
        batches = [{name: values.numpy() for name, values in fed.items() if name in names} for fed in seen]
        self.batches: Iterator[dict[str, Any]] = iter(_alike(batches) if alike else batches)

    def get_next(self) -> dict[str, Any] | None:
        """Return the next batch, or None after the last."""
        return next(self.batches, None)


def _alike(batches: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Give batches one shape, which histograms need: the last tokens are repeated where nobody looks at them.

    A last batch of fewer rows is left out.
    """
    rows = {len(values) for values in batches[0].values()}
    whole = [fed for fed in batches if {len(values) for values in fed.values()} == rows]
    shapes = {name: np.max([fed[name].shape for fed in whole], axis=0) for name in whole[0]}
    return [
        {
            name: np.pad(
                values,
                [(0, int(most) - here) for most, here in zip(shapes[name], values.shape, strict=True)],
                mode="edge" if name == "input_ids" else "constant",
            )
            for name, values in fed.items()
        }
        for fed in whole
    ]
