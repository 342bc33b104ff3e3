"""Export a model to ONNX and prove that it answers alike."""

from __future__ import annotations

import ast
import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distillkit.compression.cast import cast
from distillkit.compression.graphs import Part, parts_of, writes
from distillkit.compression.memory import is_short
from distillkit.compression.onnx_join import join
from distillkit.compression.variant import Context, Kind, Step, Variant
from distillkit.errors import UserError
from distillkit.models.anatomy import decoder_start
from distillkit.models.graph import Tensors, as_past, require_onnx
from distillkit.models.live import LiveModel
from distillkit.models.onnx import FRAGILE, MODULE, NONZEROS, PARAMETERS, OnnxModel
from distillkit.signals import Batch

SCOPES = "pkg.torch.onnx.name_scopes"  # the exporter's list of the modules around a node, and the operator
TOLERANCE = 1e-3  # of logits, or of the largest where that exceeds 1


class OnnxFloat(Step):
    """Export to ONNX in float32: mostly the fastest float runtime on a CPU, and what int8 has to beat.

    Args:
        cache: Let the graph of a language model take and return keys and values, so that each new token of a text
            costs no more than itself. An encoder-decoder's always does.
    """

    gives = Kind.onnx

    def __init__(self, cache: bool = True) -> None:
        require_onnx()
        self.cache = cache

    def __call__(self, variant: Variant, context: Context) -> Variant:
        """Export and check."""
        return Variant(onnx_model(variant, context, self.cache), notes={"dtype": "float32", "runtime": "onnxruntime"})


def onnx_model(variant: Variant, context: Context, cache: bool = True) -> OnnxModel:
    """Return the variant as a float ONNX model, exported into the step's folder if it is not one already."""
    if isinstance(variant.model, OnnxModel):
        return variant.model
    folder = context.folder / "float"
    export(variant.model, context.example, folder, cache)
    exported = OnnxModel.load(folder, variant.model.task)
    check(exported, variant.model.model, context.example)
    return exported


def export(live: LiveModel, example: Batch, folder: Path, cache: bool = True) -> None:
    """Write an ONNX model folder, in float32, with any number of rows and positions.

    Raises:
        UserError: If the architecture cannot be exported.
    """
    model = live.model.eval().cpu()
    cast(model, torch.float32)
    counts = {PARAMETERS: str(live.count_parameters()), NONZEROS: str(live.count_nonzeros())}
    facts = counts | {FRAGILE: " ".join(sorted(model._keep_in_fp32_modules))}
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with quiet(), torch.no_grad(), plain_attention(model):
            for part in parts_of(live, example, cache):
                program = _traced(part)
                program.model.metadata_props.update(facts)
                tidy(program.model.graph)
                join(program.model.graph)
                program.save(folder / part.file)
    except (torch.onnx.OnnxExporterError, AttributeError, TypeError) as error:
        if is_short(error):
            raise MemoryError from error
        reason = (str(error.__cause__ or error).strip().splitlines() or [type(error).__name__])[0]
        fix = "set cache=false in this step" if cache and writes(live) else None
        raise UserError(f"cannot export {type(model).__name__} to ONNX: {reason}", fix=fix) from error
    model.config.save_pretrained(folder)
    live.tokenizer.save_pretrained(folder)
    if writes(live):
        _written(model).save_pretrained(folder)


@contextmanager
def plain_attention(model: Any) -> Iterator[None]:
    """Write attention as its products and softmax: PyTorch's fused operator becomes three times as many nodes."""
    usual = model.config._attn_implementation
    if usual != "sdpa":
        yield
        return
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(usual)


def _traced(part: Part) -> Any:
    """Trace one graph."""
    dynamic = torch.export.Dim.DYNAMIC
    return torch.onnx.export(
        part.module.eval(),
        tuple(part.inputs.values()),
        dynamo=True,
        input_names=list(part.inputs),
        output_names=part.outputs,
        dynamic_shapes=(tuple(dict.fromkeys((0, *part.growing.get(name, ())), dynamic) for name in part.inputs),),
        verbose=False,
    )


def _written(model: Any) -> Any:
    """Return how a model writes, with what its decoder begins with."""
    settings = copy.deepcopy(model.generation_config)
    if model.config.is_encoder_decoder:
        settings.decoder_start_token_id = decoder_start(model)
    return settings


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
    if "decoder_input_ids" in whole:
        whole["decoder_input_ids"] = whole["decoder_input_ids"].clone()
        whole["decoder_input_ids"][:, 0] = decoder_start(model)
    less = {name: tensor[:1] for name, tensor in whole.items()}
    if "attention_mask" in whole:
        half = whole["attention_mask"].shape[1] // 2 + 1
        less = {name: tensor[:, :half] for name, tensor in less.items()}
    for inputs in (whole, less):
        expected, found = model(**inputs), exported.outputs(inputs)
        counted = _counted(inputs, example)
        for name, values in found.items():
            _compare(values[counted], expected[name][counted], name, model)
        if exported.graph.caches and counted.shape[1] > 1:
            _compare(_in_two_steps(exported, inputs)[counted], expected["logits"][counted], "logits", model)


def _counted(inputs: Tensors, example: Batch) -> Tensor:
    """Tell which positions, or rows, hold tokens: bool, of the shape of what the example counts."""
    if "decoder_input_ids" in inputs:
        rows = len(inputs["decoder_input_ids"])
        return example.counted[:rows, : inputs["decoder_input_ids"].shape[1]].cpu()
    tokens = inputs.get("attention_mask", torch.ones(len(next(iter(inputs.values()))), 1)).bool()
    return tokens if example.counted.dim() == 2 else tokens.any(dim=1)


def _in_two_steps(exported: OnnxModel, inputs: Tensors) -> Tensor:
    """Return the logits of a graph that is first given half of the positions, and then the others."""
    if exported.encoder is None:
        ids, fed = inputs["input_ids"], {"attention_mask": inputs["attention_mask"]}
    else:
        ids, fed = inputs["decoder_input_ids"], {"encoder_attention_mask": inputs["attention_mask"]}
        fed |= as_past(exported.encoder.run(inputs))
    half, mask = ids.shape[1] // 2, fed.get("attention_mask")
    first = fed if mask is None else {"attention_mask": mask[:, :half]}
    before = exported.graph.run({**exported.graph.empty(len(ids)), "input_ids": ids[:, :half], **first})
    after = exported.graph.run({"input_ids": ids[:, half:], **fed, **as_past(before)})
    return torch.cat([before["logits"], after["logits"]], dim=1)


def _compare(found: Tensor, right: Tensor, name: str, model: Any) -> None:
    difference = float((found - right).abs().max())
    if not difference <= TOLERANCE * max(1.0, float(right.abs().max())):
        raise UserError(
            f"the ONNX export of {type(model).__name__} differs from the model by {difference:.2g} in its {name}"
        )


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
