"""Levels: where the parts of a transformers model lie between its input and its output."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from distillkit.errors import UserError
from distillkit.models.anatomy import layer_stack
from distillkit.models.live import LiveModel
from distillkit.signals import Batch


class Levels:
    """0: the embeddings; 1 … depth: the layers from the input on; depth + 1: what runs after them (pooler, head, …).

    Args:
        depth: Layers, those of an encoder and of a decoder together.
        modules: Path → level, of the layers and of every other module that has parameters of its own.
    """

    def __init__(self, depth: int, modules: dict[str, int]) -> None:
        self.depth = depth
        self.top = depth + 1
        self._modules = modules

    def of(self, parameter: str) -> int:
        """Return the level of a parameter: that of the innermost known module around it."""
        path = parameter
        while path not in self._modules:
            path = path.rpartition(".")[0]
        return self._modules[path]


@torch.no_grad()
def find_levels(live: LiveModel, batch: Batch, key: str) -> Levels:
    """Run a model on a batch and see what runs before, between and after its layers.

    So that learned positions, norms and projections count as embeddings where they come before the first layer,
    whatever they are called. What an encoder-decoder runs between its two stacks belongs to the layer before it.

    Raises:
        UserError: If the layers are not to be found; `key` is what asked for them.
    """
    model = live.model
    paths = [
        f"{stack}.{index}" for stack in layer_stacks(model, key) for index in range(len(model.get_submodule(stack)))
    ]
    levels = {path: level for level, path in enumerate(paths, start=1)}
    reached = 0

    def reach(level: int) -> None:
        nonlocal reached
        reached = max(reached, level)

    def ran(path: str) -> None:
        levels.setdefault(path, reached if reached < len(paths) else len(paths) + 1)

    outside = {
        path: module
        for path, module in model.named_modules()
        if next(module.parameters(recurse=False), None) is not None and not _inside(path, levels)
    }
    with ExitStack() as hooks:
        for path, level in list(levels.items()):
            layer = model.get_submodule(path)
            hook = layer.register_forward_pre_hook(lambda *_, level=level: reach(level))
            hooks.callback(hook.remove)
        for path, module in outside.items():
            hook = module.register_forward_hook(lambda *_, path=path: ran(path))
            hooks.callback(hook.remove)
        live.eval()(batch)
    for path, module in outside.items():  # a table that is only looked into does not run
        levels.setdefault(path, 0 if isinstance(module, nn.Embedding) else len(paths) + 1)
    return Levels(len(paths), levels)


def layer_stacks(model: Any, key: str) -> list[str]:
    """Return the module paths of a model's lists of layers: one, or those of an encoder and its decoder."""
    if not model.config.is_encoder_decoder:
        return [layer_stack(model, key)]
    paths = {id(module): path for path, module in model.named_modules()}
    found = []
    for part in (model.get_encoder(), model.get_decoder()):
        lists = [name for name, module in part.named_modules() if isinstance(module, nn.ModuleList)]
        if not lists:
            raise UserError(f"cannot find the layers of {type(model).__name__}", where=key)
        found.append(f"{paths[id(part)]}.{min(lists, key=lambda name: name.count('.'))}")
    return found


def head_names(model: Any) -> set[str]:
    """Return the parameters of a model's head: those outside its pretrained base, and its own output embeddings.

    A head that is tied to the input embeddings is no head of its own.
    """
    base = {id(parameter) for parameter in model.base_model.parameters()}
    output, own = model.get_output_embeddings(), set()
    if output is not None:
        own = {id(parameter) for parameter in output.parameters()}
        own -= {id(parameter) for parameter in model.get_input_embeddings().parameters()}
    return {name for name, parameter in model.named_parameters() if id(parameter) in own or id(parameter) not in base}


def _inside(path: str, layers: dict[str, int]) -> bool:
    return any(path == layer or path.startswith(f"{layer}.") for layer in layers)
