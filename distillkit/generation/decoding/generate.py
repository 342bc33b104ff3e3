"""Write with `model.generate`: beam search, and models that only it knows how to run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from distillkit.generation.backends.base import STOP, Sampling
from distillkit.generation.decoding.choose import choose
from distillkit.generation.decoding.loop import Writing
from distillkit.models.live import LiveModel
from distillkit.tasks.base import attention_mask, pad


@torch.no_grad()
def generate(
    live: LiveModel,
    prompts: Sequence[list[int]],
    answers: Sequence[Writing],
    sampling: Sampling,
    batch_size: int,
    ends: frozenset[int],
    is_over: Callable[[list[int]], bool],
) -> None:
    """Let a model write answers, in place; long prompts come first, those of similar length together.

    Args:
        live: A language model, causal or encoder-decoder.
        prompts: Token ids.
        answers: Empty ones; with beams, all samples of a prompt next to each other.
        sampling: How tokens are chosen.
        batch_size: Rows at a time.
        ends: Tokens that end an answer.
        is_over: Whether tokens end an answer.
    """
    samples = sampling.samples if sampling.beams > 1 else 1
    groups = [answers[start : start + samples] for start in range(0, len(answers), samples)]
    groups = sorted((group for group in groups if group[0].room > 0), key=lambda group: -len(prompts[group[0].prompt]))
    size = max(1, batch_size // sampling.beams)
    for start in range(0, len(groups), size):
        chosen = groups[start : start + size]
        run = _search if sampling.beams > 1 else _choose
        run(live, [prompts[group[0].prompt] for group in chosen], chosen, sampling, ends, is_over)


def _choose(
    live: LiveModel,
    prompts: list[list[int]],
    groups: list[Sequence[Writing]],
    sampling: Sampling,
    ends: frozenset[int],
    is_over: Callable[[list[int]], bool],
) -> None:
    """Choose token by token, each row by its own draws."""
    chooser = _Chooser([group[0] for group in groups], sampling, is_over)
    _generate(
        live,
        prompts,
        ends,
        max_new_tokens=max(group[0].room for group in groups),
        logits_processor=LogitsProcessorList([chooser]),
        stopping_criteria=StoppingCriteriaList([_AllOver(chooser)]),
    )


def _search(
    live: LiveModel,
    prompts: list[list[int]],
    groups: list[Sequence[Writing]],
    sampling: Sampling,
    ends: frozenset[int],
    is_over: Callable[[list[int]], bool],
) -> None:
    """Search by beams; the log-probability is that of the tokens of the answer."""
    output = _generate(
        live,
        prompts,
        ends,
        max_new_tokens=min(group[0].room for group in groups),
        num_beams=sampling.beams,
        num_return_sequences=sampling.samples,
        output_scores=True,
        return_dict_in_generate=True,
    )
    scores = live.model.compute_transition_scores(output.sequences, output.scores, output.beam_indices)
    new = output.sequences[:, -scores.shape[1] :]
    for one, tokens, log_probs in zip(
        (one for group in groups for one in group), new.tolist(), scores.tolist(), strict=True
    ):
        last = next((place for place in range(len(tokens)) if is_over(tokens[: place + 1])), None)
        one.tokens = tokens if last is None else tokens[: last + 1]
        one.log_prob = sum(log_probs[: len(one.tokens)])
        one.reason = one.reason if last is None else STOP


def _generate(live: LiveModel, prompts: list[list[int]], ends: frozenset[int], **options: Any) -> Any:
    ids, mask = pad(prompts, live.tokenizer.pad_token_id), attention_mask(prompts)
    if not live.model.config.is_encoder_decoder:  # it goes on from the last column: padding comes first
        places = (torch.arange(ids.shape[1]) + mask.sum(dim=1, keepdim=True)) % ids.shape[1]
        ids, mask = ids.gather(1, places), mask.gather(1, places)
    return live.model.generate(
        input_ids=ids.to(live.device),
        attention_mask=mask.to(live.device),
        do_sample=False,
        pad_token_id=live.tokenizer.pad_token_id,
        eos_token_id=sorted(ends),
        **{"num_beams": 1, **options},
    )


class _Chooser(LogitsProcessor):
    """Choose the tokens as `choose` does, and leave `generate` nothing else to take."""

    def __init__(self, answers: list[Writing], sampling: Sampling, is_over: Callable[[list[int]], bool]) -> None:
        self.places: list[Writing | None] = list(answers)
        self.sampling = sampling
        self.is_over = is_over

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # noqa: ARG002
        numbers = [0.0 if one is None else one.number for one in self.places]
        tokens, log_probs = choose(scores, torch.tensor(numbers, dtype=torch.float64), self.sampling)
        for place, (token, log_prob) in enumerate(zip(tokens.tolist(), log_probs.tolist(), strict=True)):
            one = self.places[place]
            if one is not None and one.take(token, log_prob, self.is_over):
                self.places[place] = None
        return torch.full_like(scores, -torch.inf).scatter(1, tokens.unsqueeze(1), 0.0)


class _AllOver(StoppingCriteria):
    """Stop when every answer is over."""

    def __init__(self, chooser: _Chooser) -> None:
        self.chooser = chooser

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:  # noqa: ARG002
        over = not any(one is not None for one in self.chooser.places)
        return torch.full((input_ids.shape[0],), over, device=input_ids.device, dtype=torch.bool)
