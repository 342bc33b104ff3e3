"""Drop whole layers: those that change the hidden states least, or those that are named."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from distillkit.compression.activations import layer_states, tokens
from distillkit.compression.variant import Context, Step, Variant, torch_model
from distillkit.errors import UserError, did_you_mean
from distillkit.models.levels import layer_stacks
from distillkit.models.live import LiveModel
from distillkit.models.onnx import OnnxModel
from distillkit.models.students import copy_layers, spread

WAYS = ("influence", "angular", "even")


class DropLayers(Step):
    """Keep some of the transformer layers, and everything outside them.

    Args:
        keep: How many layers to keep, or which, counted from 0. Of an encoder-decoder, those of its encoder.
        decoder_keep: Likewise, of an encoder-decoder's decoder; null: as `keep`.
        by: What chooses among the layers where `keep` is a number. "influence": drop those with the smallest block
            influence 1 − cos(input, output), averaged over calibration tokens (ShortGPT, Men et al. 2024, eq. 1);
            "angular": drop the block of neighbours whose input and output are at the smallest angle (Gromov et al.
            2024, eq. 7); "even": keep layers spread evenly from first to last.
    """

    reshapes = True

    def __init__(
        self, keep: int | list[int], decoder_keep: int | list[int] | None = None, by: str = "influence"
    ) -> None:
        if by not in WAYS:
            raise UserError(f"unknown choice '{by}'", where="by", fix=did_you_mean(by, list(WAYS)))
        for key, value in (("keep", keep), ("decoder_keep", decoder_keep)):
            _check_keep(value, key)
        self.keep = keep
        self.decoder_keep = decoder_keep
        self.by = by
        self.calibrates = by != "even" and (isinstance(keep, int) or isinstance(decoder_keep, int))

    def check(self, start: LiveModel | OnnxModel) -> None:
        """Refuse layers that are not there."""
        if isinstance(start, LiveModel):
            stacks = layer_stacks(start.model, "compress.model")
            if self.decoder_keep is not None and len(stacks) == 1:
                what = f"{start.model.config.model_type} has no decoder beside its layers"
                raise UserError(what, where="decoder_keep")
            for stack, (key, keep) in zip(stacks, self._wanted, strict=False):
                _check_depth(keep, len(_layers(start, stack)), key)

    @property
    def _wanted(self) -> list[tuple[str, int | list[int]]]:
        """What to keep of each stack, and the argument that says so."""
        decoder = ("keep", self.keep) if self.decoder_keep is None else ("decoder_keep", self.decoder_keep)
        return [("keep", self.keep), decoder]

    def __call__(self, variant: Variant, context: Context) -> Variant:
        """Copy what is kept."""
        live = torch_model(variant)
        stacks = layer_stacks(live.model, "compress.model")
        wanted = zip(stacks, self._wanted, strict=False)
        kept = [self._choose(live, stack, keep, key, context) for stack, (key, keep) in wanted]
        dtype = live.model.dtype
        small = copy_layers(live.model, *kept).to(live.device, dtype)
        small.config.dtype = dtype
        notes: dict[str, Any] = {"layers": kept[0]} | ({"decoder_layers": kept[1]} if len(kept) > 1 else {})
        return Variant(LiveModel(small, live.tokenizer, live.task).eval(), notes=notes)

    def _choose(self, live: LiveModel, stack: str, keep: int | list[int], key: str, context: Context) -> list[int]:
        layers = _layers(live, stack)
        depth = len(layers)
        _check_depth(keep, depth, key)
        if not isinstance(keep, int):
            return keep
        if self.by == "even" or keep == depth:
            return spread(keep, depth)
        cosines = _cosines(live, layers, stack, 1 if self.by == "influence" else depth - keep, context)
        if self.by == "influence":
            dropped = set(torch.argsort(1 - cosines[:, 0], stable=True)[: depth - keep].tolist())
        else:
            first = int(cosines[:, 1].argmin())
            dropped = set(range(first, first + depth - keep))
        return [layer for layer in range(depth) if layer not in dropped]


@torch.no_grad()
def _cosines(live: LiveModel, layers: nn.ModuleList, stack: str, distance: int, context: Context) -> Tensor:
    """Compare the state before each layer with that `distance` layers later.

    Returns:
        float64 `[starts, 2]`: mean cosine and mean angle (of π) over all tokens.
    """
    in_decoder = live.model.config.is_encoder_decoder and stack == layer_stacks(live.model, stack)[1]
    sums, count = torch.zeros(len(layers) - distance + 1, 2, dtype=torch.float64), 0
    for batch in context.calibration.batches:
        placed = batch.to(live.device)
        with layer_states(layers) as states:
            live.eval()(placed)
        real = [tokens(state, placed, in_decoder).double() for state in states]
        for start in range(len(sums)):
            cosine = functional.cosine_similarity(real[start], real[start + distance], dim=-1)
            angle = cosine.clamp(-1, 1).arccos() / torch.pi
            sums[start] += torch.stack([cosine.sum(), angle.sum()]).cpu()
        count += len(real[0])
    return sums / count


def _layers(live: LiveModel, stack: str) -> nn.ModuleList:
    layers = live.model.get_submodule(stack)
    assert isinstance(layers, nn.ModuleList)
    return layers


def _check_depth(keep: int | list[int], depth: int, key: str) -> None:
    if (keep if isinstance(keep, int) else keep[-1] + 1) > depth:
        raise UserError(f"there are {depth} layers, 0 … {depth - 1}, got {keep}", where=key)


def _check_keep(keep: int | list[int] | None, key: str) -> None:
    chosen = [keep - 1] if isinstance(keep, int) else keep
    if keep is not None and (not chosen or min(chosen) < 0 or chosen != sorted(set(chosen))):
        raise UserError(f"must be a count or ascending layer numbers, got {keep}", where=key)
