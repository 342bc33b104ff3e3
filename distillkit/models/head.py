"""The output head of a language model, taken apart so that only counted positions are multiplied out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from distillkit.errors import UserError
from distillkit.signals import Batch, HeadLogits, Signal

LARGE = 50.0  # about the largest logit of a trained model


def head_signal(model: Any, batch: Batch) -> Signal:
    """Run a transformers language model, but stop before its head.

    A hook takes the head's input, keeps the counted positions and lets the head see none, so that prompt and
    padding never reach it and `[tokens, vocab]` never exists.

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
    scale, soft_cap = head_transformation(model.config)
    return Signal(HeadLogits(taken[0][batch.counted], head.weight, head.bias, scale, soft_cap))


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
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        raise UserError(f"the output head of {type(model).__name__} is no linear layer that distillkit knows")
    training = model.training
    model.eval()
    tokens = torch.arange(1, 5, device=model.device).remainder(model.config.get_text_config().vocab_size).view(1, -1)
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
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
        raise UserError(
            f"{type(model).__name__} transforms its logits in a way distillkit does not know",
            fix="please report the model type",
        )
