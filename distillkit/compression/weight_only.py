"""Store the weights of linear layers in 8 or 4 bits, in a folder that plain transformers and vLLM load."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distillkit.compression.gptq import compensated, input_products
from distillkit.compression.prune import prunable
from distillkit.compression.replay import Replay, layer_of
from distillkit.compression.rounding import Grid, rounded, scales
from distillkit.compression.variant import Context, Kind, Step, Variant, torch_model
from distillkit.errors import UserError, did_you_mean
from distillkit.models.codes import require_compressed_tensors, silent
from distillkit.models.live import LiveModel
from distillkit.models.onnx import OnnxModel
from distillkit.models.packed import PackedModel
from distillkit.signals import Batch

BITS = (4, 8)
METHODS = ("gptq", "nearest")
CAUTION = "smaller on disk; transformers compute in float, no faster than before: vLLM has kernels for it"


class WeightOnly(Step):
    """Round the weights of the layers' linear maps; embeddings, output head, norms and activations stay as they are.

    Args:
        bits: 8 or 4.
        group_size: Neighbouring inputs that share a scale; null for one scale an output.
        method: "nearest", or "gptq": weights make up for each other's errors on calibration rows.
        exclude: Modules to keep in float, by shell-style patterns such as "*.layers.0.*".
    """

    gives = Kind.packed

    def __init__(
        self, bits: int, group_size: int | None = None, method: str = "nearest", exclude: list[str] | None = None
    ) -> None:
        require_compressed_tensors()
        if bits not in BITS:
            raise UserError(f"must be 8 or 4, got {bits}", where="bits")
        if group_size is not None and group_size < 1:
            raise UserError(f"must be at least 1 or null, got {group_size}", where="group_size")
        if method not in METHODS:
            raise UserError(f"unknown method '{method}'", where="method", fix=did_you_mean(method, list(METHODS)))
        self.grid = Grid(bits, group_size)
        self.method = method
        self.exclude = exclude or []
        self.calibrates = method == "gptq"

    def check(self, start: LiveModel | OnnxModel) -> None:
        """Refuse patterns that match nothing, layers that the format has no place for, and groups that do not fit."""
        if isinstance(start, LiveModel):
            for name, module in self._linear(start).items():
                self.grid.width(module.in_features, name)

    def __call__(self, variant: Variant, context: Context) -> Variant:
        """Round, write and load again."""
        live = torch_model(variant)
        modules = self._linear(live)
        batches = context.calibration.batches if self.calibrates else []
        weights = sum(module.weight.numel() for module in modules.values())
        chosen = round_weights(live, modules, self.grid, batches)
        folder = context.folder / "packed"
        write(live, folder, self.grid, chosen)
        share = (weights * self.grid.bits / 8 + sum(scale.nbytes for scale in chosen.values())) / (4 * weights)
        notes = {"dtype": f"int{self.grid.bits}", "share_of_float32": share, "caution": CAUTION}
        return Variant(PackedModel.load(folder, live.task), notes=notes)

    def _linear(self, live: LiveModel) -> dict[str, nn.Linear]:
        modules: dict[str, nn.Linear] = {}
        for name, module in prunable(live.model, self.exclude).items():
            if not isinstance(module, nn.Linear):
                raise UserError(
                    f"compressed-tensors has no place for the {type(module).__name__} of {type(live.model).__name__}",
                    fix="use compress=int8, which writes ONNX",
                )
            modules[name.removesuffix(".weight")] = module
        return modules


@torch.no_grad()
def round_weights(
    live: LiveModel, modules: dict[str, nn.Linear], grid: Grid, batches: Iterable[Batch]
) -> dict[str, Tensor]:
    """Round weights in place, layer by layer, so that each layer sees what the rounded ones before it say.

    Args:
        live: The model.
        modules: Its linear layers that are rounded.
        grid: To what.
        batches: Calibration rows; without any, weights go to the nearest code each by itself.

    Returns:
        The scales, `[outputs, groups]` of each module.
    """
    found: dict[str, Tensor] = {}
    replay = Replay(live, batches)
    for layer in dict.fromkeys(layer_of(name) for name in modules):
        here = {name: module for name, module in modules.items() if layer_of(name) == layer}
        products = input_products(replay, here) if replay.batches else {}
        for name, module in here.items():
            weight, product = module.weight.float(), products.get(name)
            width = grid.width(module.in_features, name)
            importance = None if product is None else product.diagonal()
            found[name] = scales(weight, grid, width, importance).to(module.weight.dtype)
            scale = found[name].float()
            nearest = rounded(weight, scale, grid)
            better = nearest if product is None else compensated(weight, product, scale, grid)
            module.weight.copy_(better)
        replay.finish(layer)
    return found


def write(live: LiveModel, folder: Path, grid: Grid, chosen: dict[str, Tensor]) -> None:
    """Write a compressed-tensors folder of a model whose weights are rounded already.

    Args:
        live: The model; of no use afterwards.
        folder: To write.
        grid: What the weights were rounded to.
        chosen: Module → its scales.
    """
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import QuantizationArgs, apply_quantization_config

    shutil.rmtree(folder, ignore_errors=True)
    strategy = {"strategy": "channel"} if grid.group is None else {"strategy": "group", "group_size": grid.group}
    weights = QuantizationArgs(num_bits=grid.bits, type="int", symmetric=True, **strategy)
    with silent():
        apply_quantization_config(live.model, _config(live.model, weights, set(chosen)))
        for name, scale in chosen.items():
            module = live.model.get_submodule(name)
            module.weight_scale.data.copy_(scale.view_as(module.weight_scale))
        compressor = ModelCompressor.from_pretrained_model(live.model)
        compressor.compress_model(live.model)
        live.model.save_pretrained(folder)
        compressor.update_config(str(folder))
    live.tokenizer.save_pretrained(folder)


def _config(model: Any, weights: Any, chosen: set[str]) -> Any:
    from compressed_tensors.quantization import QuantizationConfig, QuantizationScheme

    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return QuantizationConfig(
        config_groups={"group_0": QuantizationScheme(targets=["Linear"], weights=weights)},
        ignore=[name for name in linear if name not in chosen],
    )
