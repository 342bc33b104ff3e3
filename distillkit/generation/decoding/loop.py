"""Write many answers with one model: a row that ends leaves its place to the next prompt."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from distillkit.generation.backends.base import LENGTH, STOP, Sampling
from distillkit.generation.decoding.choose import choose, penalise
from distillkit.generation.decoding.rows import CausalRows

REFILL = 8  # a batch is filled up when one in so many of its places is free


@dataclass
class Writing:
    """One answer under way.

    Attributes:
        prompt: Index of what it answers.
        room: Most tokens.
        numbers: float64 `[room]`: its draws; none if the most likely token is taken.
        tokens: So far.
        log_prob: Of these tokens.
        reason: Why it ended, or would end now.
    """

    prompt: int
    room: int
    numbers: np.ndarray
    tokens: list[int] = field(default_factory=list)
    log_prob: float = 0.0
    reason: str = LENGTH

    @property
    def number(self) -> float:
        """The draw for the next token; 0 where nothing is drawn."""
        return float(self.numbers[len(self.tokens)]) if len(self.numbers) else 0.0

    def take(self, token: int, log_prob: float, ends: Callable[[list[int]], bool]) -> bool:
        """Append a token; tell whether the answer is over."""
        self.tokens.append(token)
        self.log_prob += log_prob
        if ends(self.tokens):
            self.reason = STOP
        return self.reason == STOP or len(self.tokens) == self.room


@torch.no_grad()
def write(
    rows: CausalRows,
    prompts: Sequence[list[int]],
    answers: Sequence[Writing],
    sampling: Sampling,
    batch_size: int,
    ends: Callable[[list[int]], bool],
    penalty: float = 1.0,
) -> None:
    """Let a model write answers, in place.

    Long prompts come first: a row that enters is then never longer than the longest one there.

    Args:
        rows: Of the model; none yet.
        prompts: Token ids.
        answers: Empty ones.
        sampling: How tokens are chosen.
        batch_size: Rows at a time.
        ends: Whether tokens end an answer.
        penalty: On tokens that are in the prompt or the answer already; 1 for none.
    """
    order = sorted((one for one in answers if one.room > 0), key=lambda one: (-len(prompts[one.prompt]), one.prompt))
    waiting = deque(order)
    while waiting:
        _Run(rows.fresh(), prompts, sampling, ends, penalty).drain(waiting, batch_size)


class _Run:
    """A batch from when it is first filled until it is empty."""

    def __init__(
        self,
        rows: CausalRows,
        prompts: Sequence[list[int]],
        sampling: Sampling,
        ends: Callable[[list[int]], bool],
        penalty: float,
    ) -> None:
        self.rows = rows
        self.prompts = prompts
        self.sampling = sampling
        self.ends = ends
        self.penalty = penalty
        self.places: list[Writing | None] = []

    def drain(self, waiting: deque[Writing], batch_size: int) -> None:
        """Write until every place is free, and fill free places from those who wait."""
        entering = [waiting.popleft() for _ in range(min(batch_size, len(waiting)))]
        self.places = list(entering)
        self._take(range(len(entering)), self._read(self.rows, entering))
        while True:
            self._fill(waiting)
            if not any(self.places):
                return
            if not waiting:
                self._close_up()
            tokens = torch.tensor([0 if one is None else one.tokens[-1] for one in self.places])
            logits = self.rows.go_on(tokens)
            self._take(range(len(self.places)), logits)

    def _fill(self, waiting: deque[Writing]) -> None:
        while waiting and any(self.places):
            free = [place for place, one in enumerate(self.places) if one is None]
            if len(free) * REFILL < len(self.places):
                return
            entering = [waiting.popleft() for _ in free[: len(waiting)]]
            free = free[: len(entering)]
            other = self.rows.fresh()
            logits = self._read(other, entering)
            self.rows.put(free, other)
            for place, one in zip(free, entering, strict=True):
                self.places[place] = one
            self._take(free, logits)

    def _read(self, rows: CausalRows, entering: list[Writing]) -> Tensor:
        """Read the prompts of answers, each prompt once; return the logits `[answers, vocab]` of their first tokens."""
        found = list(dict.fromkeys(one.prompt for one in entering))
        logits = rows.read([self.prompts[prompt] for prompt in found])
        if len(found) == len(entering):
            return logits
        places = [found.index(one.prompt) for one in entering]
        rows.keep(places)
        return logits[torch.tensor(places, device=logits.device)]

    def _take(self, places: Sequence[int], logits: Tensor) -> None:
        """Choose a token for what is written in some places, given their logits `[places, vocab]`; free what ends."""
        writing = [self.places[place] for place in places]
        numbers = torch.tensor([0.0 if one is None else one.number for one in writing], dtype=torch.float64)
        if self.penalty != 1:
            said = [() if one is None else {*self.rows.seen(self.prompts[one.prompt]), *one.tokens} for one in writing]
            logits = penalise(logits, said, self.penalty)
        tokens, log_probs = choose(logits, numbers, self.sampling)
        over = [
            place
            for place, one, token, log_prob in zip(places, writing, tokens.tolist(), log_probs.tolist(), strict=True)
            if one is not None and one.take(token, log_prob, self.ends)
        ]
        for place in over:
            self.places[place] = None
        self.rows.vacate(over)

    def _close_up(self) -> None:
        """Leave out the places that nobody will take."""
        kept = [place for place, one in enumerate(self.places) if one is not None]
        if len(kept) < len(self.places):
            self.rows.keep(kept)
            self.places = [self.places[place] for place in kept]
