"""The output head of a language model, taken apart so that only counted positions are multiplied out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import is_fake

from distillkit.errors import UserError
from distillkit.signals import Batch, HeadLogits, Signal

LARGE = 50.0  # about the largest logit of a trained model


def head_signal(model: Any, batch: Batch) -> Signal:
    """Run a transformers language model, but stop before its head.

    A hook takes the head's input, keeps the counted positions and lets the head see none, so that prompt and
    padding never reach it and `[tokens, vocab]` never exists. Of an encoder-decoder they are the decoder's positions.

    Returns:
        `HeadLogits` over the items of the batch.
    """
    head = model.get_output_embeddings()
    taken: list[Tensor] = []

    def take(_module: Any, arguments: tuple[Tensor]) -> tuple[Tensor]:
        taken.append(arguments[0])
        return (arguments[0][:, :0],)

    handle = head.register_forward_pre_hook(take)
    try:
        model(**batch.inputs, use_cache=False)
    finally:
        handle.remove()
    if len(taken) != 1:
        raise _unknown(f"{type(model).__name__} does not use its output head as one linear layer")
    hidden, weight, bias = _linear(model, head, taken[0][batch.counted])
    scale, soft_cap = head_transformation(model.config)
    return Signal(HeadLogits(hidden, weight, bias, scale, soft_cap))


def _linear(model: Any, head: Any, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return hidden states `[items, d]`, weight and bias of the one linear map that a model's head is."""
    if type(head).__module__.startswith("peft."):
        hidden, weight, bias = _adapted(head, hidden)
    elif isinstance(head, nn.Linear):
        weight, bias = head.weight, head.bias
    else:
        raise UserError(f"the output head of {type(model).__name__} is no linear layer that distillkit knows")
    extra = getattr(model, "final_logits_bias", None)  # of BART, Marian and their kin: [1, vocab]
    if extra is not None:
        bias = extra[0] if bias is None else bias + extra[0]
    return hidden, weight, bias


def _adapted(head: Any, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the same of a head that peft has wrapped.

    W x + s B A x is one map, [W B] of [x; s A x]. A sum W + s B A would round small changes away in half precision.
    """
    from peft.tuners.lora import Linear as LoraLinear
    from peft.utils import ModulesToSaveWrapper

    if isinstance(head, ModulesToSaveWrapper):
        whole = head.modules_to_save[head.active_adapters[0]] if head.active_adapters else head.original_module
        return hidden, whole.weight, whole.bias
    if not isinstance(head, LoraLinear):
        raise UserError(f"the output head has an adapter that distillkit does not know: {type(head).__name__}")
    base = head.get_base_layer()
    active = [] if head.merged or head.disable_adapters else [n for n in head.active_adapters if n in head.lora_A]
    states, weights = [hidden], [base.weight]
    for name in active:
        down, up = head.lora_A[name], head.lora_B[name]
        if name in head.lora_variant or up.bias is not None:
            raise UserError("the output head has a LoRA adapter that is more than a product", fix="adapt it plainly")
        states.append(
            (head.scaling[name] * down(head.lora_dropout[name](hidden.to(down.weight.dtype)))).to(hidden.dtype)
        )
        weights.append(up.weight.to(base.weight.dtype))
    return torch.cat(states, dim=-1), torch.cat(weights, dim=-1), base.bias


def head_transformation(config: Any) -> tuple[float, float | None]:
    """Read what a model does to the head's product: (factor, soft cap)."""
    settings = config.get_text_config()
    factor, divisor = getattr(settings, "logit_scale", None), getattr(settings, "logits_scaling", None)
    scale = (factor if isinstance(factor, float | int) else 1.0) / (divisor or 1.0)
    return scale, getattr(settings, "final_logit_softcapping", None)


@torch.no_grad()
def check_head(model: Any) -> None:
    """Compare the taken-apart head with the model's own logits on a few tokens.

    The head's input is enlarged for it, so that the logits of an untrained model too are where a soft cap bends.

    Raises:
        UserError: If the model changes its logits in a way that is not known here.
    """
    head, training = model.get_output_embeddings(), model.training
    if any(is_fake(parameter) for parameter in head.parameters()):  # shapes without values: nothing to compare
        return
    model.eval()
    tokens = torch.arange(1, 5, device=model.device).remainder(model.config.get_text_config().vocab_size).view(1, -1)
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = tokens
    batch = Batch(inputs, torch.ones_like(tokens, dtype=torch.bool), tokens.flatten(), tokens.flatten() > 0)
    factor = LARGE / model(**inputs, use_cache=False).logits.abs().max().float().clamp(min=1e-6)
    handle = head.register_forward_pre_hook(lambda _module, arguments: (arguments[0] * factor.to(arguments[0].dtype),))
    try:
        own = model(**inputs, use_cache=False).logits[0].float()
        logits = head_signal(model, batch).logits
    finally:
        handle.remove()
        model.train(training)
    assert logits is not None
    ours = logits.rows(0, tokens.numel()).float()
    tolerance = 1e-3 if model.dtype == torch.float32 else 3e-2
    if own.shape != ours.shape or (own - ours).abs().max() > tolerance * own.abs().max():
        raise _unknown(f"{type(model).__name__} transforms its logits in a way distillkit does not know")


def _unknown(what: str) -> UserError:
    return UserError(what, fix="please report the model type")
