"""Whether a model keeps the texts of a packed row apart."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from distillkit.errors import UserError
from distillkit.models.head import head_signal
from distillkit.signals import Batch, HeadLogits

SIZES = (5, 3, 1, 7)  # tokens of the texts that are tried
LEAK, EXACT, ROUGH = 1e-6, 1e-4, 3e-2  # shares of the largest hidden state: a text sees another; float32; half


@torch.no_grad()
def check_packing(model: Any) -> None:
    """Compare what a causal language model makes of texts in one row with what it makes of each alone.

    Raises:
        UserError: If it differs, or if another text in the row changes it.
    """
    training = model.training
    model.eval()
    try:
        texts = [_tokens(model, start, size) for start, size in zip((1, 6, 9, 10), SIZES, strict=True)]
        packed = _hidden(model, texts)
        alone = torch.cat([_hidden(model, [text]) for text in texts])
        other = _hidden(model, [_tokens(model, 21, SIZES[0]), *texts[1:]])
    except TypeError as error:  # no position ids
        raise _refusal(model) from error
    finally:
        model.train(training)
    size = packed.abs().max()
    leak = (packed - other)[SIZES[0] :].abs().max()
    error_ = (packed - alone).abs().max()
    if leak > LEAK * size or error_ > (EXACT if model.dtype == torch.float32 else ROUGH) * size:
        raise _refusal(model)


def _tokens(model: Any, start: int, size: int) -> Tensor:
    ids = torch.arange(start, start + size, device=model.device)
    return ids.remainder(model.config.get_text_config().vocab_size)


def _hidden(model: Any, texts: list[Tensor]) -> Tensor:
    """Return the input of the output head `[tokens, d]` for texts in one row."""
    ids = torch.cat(texts).unsqueeze(0)
    positions = torch.cat([torch.arange(len(text), device=ids.device) for text in texts]).unsqueeze(0)
    everything = torch.ones_like(ids, dtype=torch.bool)
    batch = Batch({"input_ids": ids, "position_ids": positions}, everything, ids[0], everything[0])
    logits = head_signal(model, batch).logits
    assert isinstance(logits, HeadLogits)
    return logits.hidden.float()


def _refusal(model: Any) -> UserError:
    return UserError(
        f"{type(model).__name__} does not keep the texts of a row apart", where="task.packing", fix="set it to false"
    )
