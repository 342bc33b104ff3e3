"""Several teachers as one: the mixture of their distributions, Σ w p."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from distillkit.errors import UserError
from distillkit.signals import DenseLogits, Logits, SparseLogits


def mix(logits: Sequence[Logits], weights: Sequence[float], kind: str) -> Logits:
    """Mix what teachers say about the same items.

    Args:
        logits: Of each teacher, all dense or all sparse at one temperature, over the same classes.
        weights: Of each, adding up to 1.
        kind: "classes": of one item, their probabilities are mixed; "labels": those of each label; "scores": the
            scores themselves.

    Raises:
        UserError: If they cannot be mixed.
    """
    if len(logits) == 1:
        return logits[0]
    log_weights = torch.tensor(weights, dtype=torch.float64).log()
    dense = [one.values.double() for one in logits if isinstance(one, DenseLogits)]
    if len(dense) == len(logits):
        return DenseLogits(_mix_dense(torch.stack(dense), log_weights, kind).float())
    sparse = [one for one in logits if isinstance(one, SparseLogits)]
    if len(sparse) != len(logits):
        fix = "make them with one generate.codec"
        raise UserError("stores of whole and of sparse logits cannot be mixed", where="teacher.path", fix=fix)
    if len({one.temperature for one in sparse}) > 1:
        raise UserError("stores of different temperatures cannot be mixed", where="teacher.path")
    return _mix_sparse(sparse, log_weights)


def _mix_dense(logits: Tensor, log_weights: Tensor, kind: str) -> Tensor:
    """Mix `[teachers, items, outputs]` into `[items, outputs]`."""
    shares = log_weights.view(-1, 1, 1)
    if kind == "scores":
        return (logits * shares.exp()).sum(dim=0)
    if kind == "labels":
        on, off = (torch.nn.functional.logsigmoid(sign * logits) for sign in (1, -1))
        return torch.logsumexp(on + shares, dim=0) - torch.logsumexp(off + shares, dim=0)
    return torch.logsumexp(logits.log_softmax(dim=-1) + shares, dim=0)


def _mix_sparse(logits: Sequence[SparseLogits], log_weights: Tensor) -> SparseLogits:
    """Mix with what a teacher leaves spread evenly; and with its draws in place of that, for losses that are linear.

    Is there a teacher that only has draws, then nothing is listed in the first mixture, as in such a teacher's own.
    """
    if not any(one.has_draws for one in logits):
        return _listed_by_any(logits, log_weights)
    sampled = _listed_by_any([one.with_draws() if one.has_draws else one for one in logits], log_weights)
    if any(one.ids.shape[-1] == 0 for one in logits):
        none = torch.zeros_like(sampled.rest)
        return replace(sampled, ids=sampled.ids[:, :0], log_probs=sampled.log_probs[:, :0], rest=none, sampled=sampled)
    return replace(_listed_by_any(logits, log_weights), sampled=sampled)


def _listed_by_any(logits: Sequence[SparseLogits], log_weights: Tensor) -> SparseLogits:
    """List every class that any teacher lists; one that does not list it holds it for one of its others."""
    classes = logits[0].classes
    ids = torch.cat([one.ids for one in logits], dim=-1)
    ids = ids.where(ids >= 0, classes).sort(dim=-1).values
    again = torch.zeros_like(ids, dtype=torch.bool)
    again[:, 1:] = ids[:, 1:] == ids[:, :-1]
    ids = ids.masked_fill(again, classes).sort(dim=-1).values
    ids = ids[:, : int((ids < classes).sum(dim=-1).max())] if len(ids) else ids  # slots that nobody needs
    listed = ids < classes
    values, rests = [], []
    for one, share in zip(logits, log_weights, strict=True):
        value, own = _look_up(one, ids)
        values.append(torch.where(own, value, one.each.double().unsqueeze(-1)) + share)
        beside = (listed & ~own).sum(dim=-1)  # classes that only the others list, taken from what it has left
        others = (classes - (one.ids >= 0).sum(dim=-1)).clamp(min=1)
        rests.append(one.rest.double() + torch.log1p(-(beside / others).clamp(max=1.0).double()) + share)
    log_probs = torch.logsumexp(torch.stack(values), dim=0).float()
    rest = torch.logsumexp(torch.stack(rests), dim=0).float()
    return SparseLogits(ids.masked_fill(~listed, -1), log_probs, rest, classes, temperature=logits[0].temperature)


def _look_up(one: SparseLogits, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return the log-probabilities of classes `[items, k]` that a teacher lists, and which it does."""
    own, order = one.ids.where(one.ids >= 0, one.classes).sort(dim=-1)
    places = torch.searchsorted(own, ids.contiguous()).clamp(max=own.shape[-1] - 1)
    found = (own.gather(-1, places) == ids) & (ids < one.classes)
    values = one.log_probs.double().gather(-1, order).gather(-1, places)
    return values, found
