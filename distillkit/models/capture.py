"""Capture features inside a transformers model, by hooks that exist during one forward pass only.

Queries, keys and values are taken where transformers hands them to the attention kernel, so the model keeps running
on SDPA or flash attention, and they are what the kernel sees: after rotation and normalisation, keys not yet
repeated. A soft cap on scores (Gemma 2) comes after them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from math import isclose
from typing import Any

from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from distillkit.errors import UserError, did_you_mean
from distillkit.models.anatomy import layer_stack

ATTENTION = ("query", "key", "value")


class _Enough(Exception):
    """Everything that was asked for has been seen."""


@contextmanager
def capturing(model: Any, names: Collection[str], stop: bool = False) -> Iterator[dict[str, Tensor]]:
    """Capture features of the forward pass that runs inside.

    Args:
        model: A transformers model.
        names: As in `distillkit.features`.
        stop: End the forward pass, and the `with` block, once all of them are there.

    Yields:
        Name → tensor, filled as the model runs.
    """
    taken: dict[str, Tensor] = {}

    def take(name: str, tensor: Tensor) -> None:
        taken[name] = tensor
        if stop and len(taken) == len(names):
            raise _Enough

    with ExitStack() as hooks:
        for name in names:
            if not name.startswith("layers.") or name.endswith(".hidden"):
                hooks.callback(_hook(model, name, take).remove)
        if any(name.endswith(ATTENTION) for name in names):
            hooks.enter_context(_attention_seen(model, names, take))
        with suppress(_Enough):
            yield taken


def check_features(taken: Mapping[str, Tensor], names: Collection[str], model: Any, key: str) -> None:
    """Refuse a model that did not show what was asked for."""
    missing = sorted(set(names) - set(taken))
    if missing:
        raise UserError(
            f"{type(model).__name__} does not show {', '.join(missing)}: it computes attention in a way of its own",
            where=key,
            fix="use losses on hidden states or logits",
        )


def _hook(model: Any, name: str, take: Callable[[str, Tensor], None]) -> Any:
    if name.startswith("module:"):
        path = name.removeprefix("module:")
        modules = dict(model.named_modules())
        if path not in modules:
            fix = did_you_mean(path, [known for known in modules if known])
            raise UserError(f"{type(model).__name__} has no module '{path}'", where="modules", fix=fix)
        if model.config.is_encoder_decoder and modules[path] in list(model.get_decoder().modules()):
            raise UserError(f"'{path}' is in the decoder", where="modules", fix="name a module of the encoder")
        return modules[path].register_forward_hook(lambda _module, _arguments, output: take(name, _tensor(output)))
    layers = model.get_submodule(layer_stack(model, "loss"))
    if name == "embeddings":
        return layers[0].register_forward_pre_hook(
            lambda _module, arguments, named: take(name, arguments[0] if arguments else named["hidden_states"]),
            with_kwargs=True,
        )
    layer = layers[int(name.split(".")[1])]
    return layer.register_forward_hook(lambda _module, _arguments, output: take(name, _tensor(output)))


def _tensor(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


@contextmanager
def _attention_seen(model: Any, names: Collection[str], take: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Look over the shoulder of transformers' attention function while the block runs."""
    kind = model.config.get_text_config()._attn_implementation
    kernel = ALL_ATTENTION_FUNCTIONS.get(kind)
    layers = model.get_submodule(layer_stack(model, "loss"))
    owners = {module: index for index, layer in enumerate(layers) for module in layer.modules()}

    def watched(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *rest: Any, **options: Any) -> Any:
        if module in owners and "position_bias" not in options:  # a bias is no product of queries and keys
            _check_window(query, options.get("sliding_window"))
            parts = zip(ATTENTION, (_scaled(query, options.get("scaling")), key, value), strict=True)
            for part, tensor in parts:
                if (name := f"layers.{owners[module]}.{part}") in names:
                    take(name, tensor)
        function = kernel or sys.modules[type(module).__module__].eager_attention_forward
        return function(module, query, key, value, *rest, **options)

    ALL_ATTENTION_FUNCTIONS[kind] = watched
    try:
        yield
    finally:
        del ALL_ATTENTION_FUNCTIONS[kind]


def _scaled(query: Tensor, scaling: float | None) -> Tensor:
    """Make q · k / √head_width the model's scores, whatever it scales by."""
    usual = query.shape[-1] ** -0.5
    return query if scaling is None or isclose(scaling, usual) else query * (scaling / usual)


def _check_window(query: Tensor, window: int | None) -> None:
    if window is not None and query.shape[-2] > window:
        raise UserError(
            f"{query.shape[-2]} tokens do not fit into the {window} that a layer looks at",
            where="task.max_length",
            fix=f"set it to {window} or less, or use losses on hidden states",
        )
