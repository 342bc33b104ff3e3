"""Run a model on the same batches again and again, each time a layer further: what lies before is not computed anew."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from distillkit.models.live import LiveModel
from distillkit.signals import Batch

LAYER = re.compile(r"^(.*?)\.\d+(?=\.|$)")  # "model.layers.3" of "model.layers.3.mlp.up_proj"; in it "model.layers"


class Enough(Exception):
    """Raise it from a hook: nothing more of this batch is wanted."""


def layer_of(name: str) -> str:
    """Return the layer that a module is part of; the module itself if it is in none."""
    found = LAYER.match(name)
    return name if found is None else found[0]


class Replay:
    """Batches that a model is run on while its layers are changed one after the other.

    A layer that was changed for good answers what it said when it was run last. So a change of every layer in turn
    costs two forward passes, not one for each layer; what is kept is one hidden state of every batch and stack.

    Args:
        live: The model; layers pass on what they say, and nothing else, to the layers behind them.
        batches: What it is run on.
    """

    def __init__(self, live: LiveModel, batches: Iterable[Batch]) -> None:
        self.live = live.eval()
        self.batches = [batch.to(live.device) for batch in batches]
        self._said: dict[str, list[Any]] = {}
        self._finished: list[str] = []
        self._changed: str | None = None

    def finish(self, layer: str) -> None:
        """Tell that a layer was changed, and will not be again."""
        self._changed = layer if LAYER.fullmatch(layer) else None

    @torch.no_grad()
    def run(self, look: Callable[[str, Tensor, Batch], None], modules: Mapping[str, nn.Module]) -> None:
        """Run the model as far as some modules, and look at what they get.

        Args:
            look: Takes a module's name, its first input and the batch.
            modules: By name.
        """
        heard: list[Any] = []
        for number, batch in enumerate(self.batches):
            missing = set(modules)

            def see(name: str, inputs: tuple[Tensor, ...], batch: Batch = batch, missing: set[str] = missing) -> None:
                look(name, inputs[0], batch)
                missing.discard(name)
                if not missing:
                    raise Enough

            with ExitStack() as stack, suppress(Enough):
                stack.enter_context(self._answering(number))
                if self._changed is not None:
                    layer = self.live.model.get_submodule(self._changed)
                    hook = layer.register_forward_hook(lambda _layer, _inputs, said: heard.append(said))
                    stack.callback(hook.remove)
                for name, module in modules.items():
                    before = module.register_forward_pre_hook(lambda _, inputs, name=name, see=see: see(name, inputs))
                    stack.callback(before.remove)
                self.live(batch)
        if self._changed is not None and len(heard) == len(self.batches):
            self._said[_stack(self._changed)] = heard
            self._finished.append(self._changed)
        self._changed = None

    @contextmanager
    def _answering(self, number: int) -> Iterator[None]:
        """Let finished layers answer what was said last to a batch."""
        layers = {name: self.live.model.get_submodule(name) for name in self._finished}
        for name, layer in layers.items():
            said = self._said[_stack(name)][number]
            layer.forward = lambda *_, said=said, **__: said
        try:
            yield
        finally:
            for layer in layers.values():
                del layer.forward


def _stack(layer: str) -> str:
    found = LAYER.fullmatch(layer)
    assert found is not None
    return found[1]
