"""Export a model to ONNX and prove that it answers alike."""

from __future__ import annotations

import ast
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distillkit.compression.cast import cast
from distillkit.compression.variant import Context, Kind, Step, Variant
from distillkit.errors import UserError
from distillkit.models.live import LiveModel
from distillkit.models.onnx import GRAPH, MODULE, NONZEROS, PARAMETERS, OnnxModel, require_onnx
from distillkit.signals import Batch

SCOPES = "pkg.torch.onnx.name_scopes"  # the exporter's list of the modules around a node, and the operator
TOLERANCE = 1e-3  # of logits, or of the largest where that exceeds 1


class OnnxFloat(Step):
    """Export to ONNX in float32: mostly the fastest float runtime on a CPU, and what int8 has to beat."""

    gives = Kind.onnx

    def __init__(self) -> None:
        require_onnx()

    def check(self, start: LiveModel | OnnxModel) -> None:
        """Refuse what cannot be exported."""
        check_exportable(start)

    def __call__(self, variant: Variant, context: Context) -> Variant:
        """Export and check."""
        return Variant(onnx_model(variant, context), notes={"dtype": "float32", "runtime": "onnxruntime"})


def check_exportable(start: LiveModel | OnnxModel) -> None:
    """Refuse a model that one graph from inputs to outputs cannot stand for."""
    if isinstance(start, LiveModel) and start.model.config.is_encoder_decoder:
        fix = "use compress=prune, bf16 or fp16"
        raise UserError("an encoder-decoder needs several ONNX graphs to write with", fix=fix)


def onnx_model(variant: Variant, context: Context) -> OnnxModel:
    """Return the variant as a float ONNX model, exported into the step's folder if it is not one already."""
    if isinstance(variant.model, OnnxModel):
        return variant.model
    folder = context.folder / "float"
    export(variant.model, context.example, folder)
    exported = OnnxModel.load(folder, variant.model.task)
    check(exported, variant.model.model, context.example)
    return exported


class _Outputs(nn.Module):
    """A transformers model that takes its inputs in order and returns the named outputs alone."""

    def __init__(self, model: Any, names: list[str], wanted: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.names = names
        self.wanted = wanted

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        found = self.model(**dict(zip(self.names, inputs, strict=True)))
        return tuple(getattr(found, name) for name in self.wanted)


def export(live: LiveModel, example: Batch, folder: Path) -> None:
    """Write an ONNX model folder, in float32, with any number of rows and positions.

    Raises:
        UserError: If the architecture cannot be exported.
    """
    model = live.model.eval().cpu()
    cast(model, torch.float32)
    names = list(example.inputs)
    inputs = tuple(torch.cat([tensor, tensor])[:2].cpu() for tensor in example.inputs.values())
    rows = {0: torch.export.Dim.DYNAMIC}
    places = {} if live.task.modality == "image" else {1: torch.export.Dim.DYNAMIC}
    try:
        with quiet(), torch.no_grad():
            program = torch.onnx.export(
                _Outputs(model, names, live.task.output_names).eval(),
                inputs,
                dynamo=True,
                input_names=names,
                output_names=list(live.task.output_names),
                dynamic_shapes=(tuple(rows | places for _ in names),),
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise UserError(f"cannot export {type(model).__name__} to ONNX: {reason}") from error
    assert program is not None
    counts = {PARAMETERS: str(live.count_parameters()), NONZEROS: str(live.count_nonzeros())}
    program.model.metadata_props.update(counts)
    tidy(program.model.graph)
    folder.mkdir(parents=True, exist_ok=True)
    program.save(folder / GRAPH)
    model.config.save_pretrained(folder)
    live.tokenizer.save_pretrained(folder)


def tidy(graph: Any) -> None:
    """Keep of a graph's metadata which module a node came from: the rest is large and names files of this machine."""
    graph.metadata_props.clear()
    for node in graph.all_nodes():
        *modules, _operator = ast.literal_eval(node.metadata_props.get(SCOPES, "['']"))
        node.metadata_props.clear()
        if modules and modules[-1].startswith("model."):
            node.metadata_props[MODULE] = modules[-1].removeprefix("model.")


@torch.no_grad()
def check(exported: OnnxModel, model: Any, example: Batch) -> None:
    """Compare the outputs of the export with those of the model for two shapes, on positions that hold tokens.

    Raises:
        UserError: If they differ.
    """
    whole = {name: tensor[:4].cpu() for name, tensor in example.inputs.items()}
    less = {name: tensor[:1] for name, tensor in whole.items()}
    if "attention_mask" in whole:
        half = whole["attention_mask"].shape[1] // 2 + 1
        less = {name: tensor[:, :half] for name, tensor in less.items()}
    for inputs in (whole, less):
        expected = model(**inputs)
        everything = torch.ones(len(next(iter(inputs.values()))), 1)
        tokens = inputs.get("attention_mask", everything).bool()
        counted = tokens if example.counted.dim() == 2 else tokens.any(dim=1)  # outputs of positions, or of rows
        for name, values in exported.outputs(inputs).items():
            right = expected[name][counted]
            difference = float((values[counted] - right).abs().max())
            if not difference <= TOLERANCE * max(1.0, float(right.abs().max())):
                found = f"differs from the model by {difference:.2g} in its {name}"
                raise UserError(f"the ONNX export of {type(model).__name__} {found}")


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporter's and the quantiser's warnings, which tell users nothing, off the console."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
