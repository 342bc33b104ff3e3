"""Make the feed-forward networks of the layers narrower."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from distillkit.compression.activations import Moments, input_moments
from distillkit.compression.structure import keep_inputs, keep_outputs, matrix_of, rebuilt
from distillkit.compression.variant import Context, Step, Variant, torch_model
from distillkit.errors import UserError
from distillkit.models.levels import layer_stacks
from distillkit.models.live import LiveModel
from distillkit.models.onnx import OnnxModel

# How families call the maps into and out of a feed-forward network, the longest list first.
NAMES = (
    (("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj"),  # Llama, Qwen, Mistral, Gemma, SmolLM
    (("intermediate.dense",), "output.dense"),  # BERT, RoBERTa, ELECTRA, MPNet, DeBERTa
    (("ffn.lin1",), "ffn.lin2"),  # DistilBERT
    (("mlp.c_fc",), "mlp.c_proj"),  # GPT-2
    (("mlp.dense_h_to_4h",), "mlp.dense_4h_to_h"),  # GPT-NeoX, Bloom
    (("mlp.fc1",), "mlp.fc2"),  # ViT, Phi
    (("fc1",), "fc2"),  # BART, OPT, Marian
    (("DenseReluDense.wi_0", "DenseReluDense.wi_1"), "DenseReluDense.wo"),  # T5 v1.1, mT5
    (("DenseReluDense.wi",), "DenseReluDense.wo"),  # T5
)
WIDTHS = ("intermediate_size", "hidden_dim", "n_inner", "d_ff", "encoder_ffn_dim", "decoder_ffn_dim", "ffn_dim")


@dataclass(frozen=True)
class FeedForward:
    """A feed-forward network: the maps that make its units, and the map that reads them."""

    up: tuple[nn.Module, ...]
    down: nn.Module

    @property
    def width(self) -> int:
        """Number of units."""
        return matrix_of(self.down).shape[1]


class NarrowFFN(Step):
    """Keep the same number of units in the feed-forward network of every layer, those that matter most.

    A unit matters as much as it moves the output: mean square of its activation × square of the weights that read it.
    Where the output has a bias, that takes over what the dropped units add on average, and only their variance counts
    (FLAP, An et al. 2024).

    Args:
        keep: Share of the units, or how many.
    """

    calibrates = True
    reshapes = True

    def __init__(self, keep: float) -> None:
        if not keep > 0:
            raise UserError(f"must be above 0, got {keep}", where="keep")
        self.keep = keep

    def check(self, start: LiveModel | OnnxModel) -> None:
        """Refuse models whose feed-forward networks are not to be found."""
        if isinstance(start, LiveModel):
            feed_forwards(start.model)
            width_settings(start.model.config)

    def __call__(self, variant: Variant, context: Context) -> Variant:
        """Narrow the networks, and build the model anew."""
        live = torch_model(variant)
        found = feed_forwards(live.model)
        moments = input_moments(live, context.calibration.batches, {name: ffn.down for name, ffn in found.items()})
        widths = {name: self._kept(ffn.width) for name, ffn in found.items()}
        for name, ffn in found.items():
            narrow(ffn, moments[name], widths[name])
        for setting in width_settings(live.model.config):
            setattr(live.model.config, setting, self._kept(getattr(live.model.config, setting)))
        if "n_inner" in live.model.config.to_dict():
            live.model.config.n_inner = next(iter(widths.values()))
        small = LiveModel(rebuilt(live.model), live.tokenizer, live.task).eval()
        return Variant(small, notes={"units": next(iter(widths.values()))})

    def _kept(self, width: int) -> int:
        kept = max(1, round(self.keep * width)) if self.keep <= 1 else round(self.keep)
        if kept > width:
            raise UserError(f"there are {width} units in a layer, got {self.keep}", where="keep")
        return kept


def feed_forwards(model: Any) -> dict[str, FeedForward]:
    """Find the feed-forward network of every layer: path of the map that reads its units → network.

    Raises:
        UserError: If a layer has none that is known.
    """
    found = {}
    for stack in layer_stacks(model, "compress.model"):
        layers = model.get_submodule(stack)
        for number, layer in enumerate(layers):
            down, ffn = _feed_forward(layer, type(model).__name__)
            found[f"{stack}.{number}.{down}"] = ffn
    return found


def _feed_forward(layer: nn.Module, model: str) -> tuple[str, FeedForward]:
    modules = dict(layer.named_modules())
    for ups, down in NAMES:
        for path in modules:
            before = path.removesuffix(ups[0])
            names = [before + name for name in (*ups, down)]
            if before != path and (not before or before.endswith(".")) and all(name in modules for name in names):
                *up, last = (modules[name] for name in names)
                return names[-1], FeedForward(tuple(up), last)
    raise UserError(f"{model} has no feed-forward networks of a known kind")


def width_settings(config: Any) -> list[str]:
    """Return the settings of a config that hold the number of units; GPT-2's may be null."""
    values = config.to_dict()
    names = [name for name in WIDTHS if isinstance(values.get(name), int)]
    if not names and "n_inner" not in values:
        raise UserError(f"the config of {config.model_type} does not say how wide its feed-forward networks are")
    return names


def importance(moments: Moments, down: nn.Module) -> Tensor:
    """Return how much each input of a linear map moves its output: float64 `[inputs]`."""
    size = moments.square if down.bias is None else moments.variance
    return size * matrix_of(down).double().square().sum(dim=0)


@torch.no_grad()
def narrow(ffn: FeedForward, moments: Moments, width: int) -> None:
    """Keep the most important units, in their order; a bias takes over the mean of the others."""
    chosen = importance(moments, ffn.down).topk(width).indices.sort().values
    compensate(ffn.down, moments, chosen)
    for up in ffn.up:
        keep_outputs(up, chosen)
    keep_inputs(ffn.down, chosen)


@torch.no_grad()
def compensate(down: nn.Module, moments: Moments, chosen: Tensor) -> None:
    """Add to the bias of a linear map, if it has one, what its other inputs contribute on average."""
    if isinstance(down.bias, Tensor):
        dropped = torch.ones_like(moments.mean, dtype=torch.bool)
        dropped[chosen] = False
        down.bias += (matrix_of(down).double() * (moments.mean * dropped)).sum(dim=1).to(down.bias.dtype)
