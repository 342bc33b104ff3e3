"""Weights and temperatures that change over a run: functions of its progress, so that a resumed run goes on exactly."""

from __future__ import annotations

from math import cos, pi

from distillkit.errors import UserError


class Schedule:
    """A value for each moment of a run."""

    def at(self, progress: float) -> float:
        """Return the value after `progress` of the run's optimiser steps, a share in [0, 1]."""
        raise NotImplementedError

    def values(self) -> tuple[float, ...]:
        """Return values that bound all others."""
        raise NotImplementedError


class _Between(Schedule):
    """From `start` to `end` while progress goes from `begin` to `until`; before and after, the nearer of them."""

    def __init__(self, start: float, end: float, begin: float = 0.0, until: float = 1.0) -> None:
        if not 0 <= begin < until <= 1:
            raise UserError(f"needs 0 ≤ begin < until ≤ 1, got {begin} and {until}", where="begin")
        self.start, self.end, self.begin, self.until = start, end, begin, until

    def at(self, progress: float) -> float:
        done = min(max((progress - self.begin) / (self.until - self.begin), 0.0), 1.0)
        return self.start + (self.end - self.start) * self.share(done)

    def values(self) -> tuple[float, ...]:
        return self.start, self.end

    def share(self, done: float) -> float:
        raise NotImplementedError

    def __str__(self) -> str:
        return f"{self.start:g}→{self.end:g}"


class Linear(_Between):
    """A straight line.

    Args:
        start: Value until `begin`.
        end: Value from `until` on.
        begin: Share of the run's steps at which it starts to change.
        until: Share at which it has arrived.
    """

    def share(self, done: float) -> float:
        """Return how much of the way is gone."""
        return done


class Cosine(_Between):
    """Half a cosine wave: slow at both ends.

    Args:
        start: Value until `begin`.
        end: Value from `until` on.
        begin: Share of the run's steps at which it starts to change.
        until: Share at which it has arrived.
    """

    def share(self, done: float) -> float:
        """Return how much of the way is gone."""
        return (1 - cos(pi * done)) / 2


class Step(Schedule):
    """Constant pieces.

    Args:
        steps: `[[share of the run, value], …]`: from that share on the value holds; the first share is 0.
    """

    def __init__(self, steps: list[list[float]]) -> None:
        shares = [step[0] for step in steps if len(step) == 2]
        if len(shares) != len(steps) or not shares or shares[0] != 0 or shares != sorted(set(shares)):
            raise UserError(f"must be [[0, value], [share, value], …] with rising shares, got {steps}", where="steps")
        self.steps = steps

    def at(self, progress: float) -> float:
        """Return the value of the last piece that has begun."""
        return [value for share, value in self.steps if share <= progress][-1]

    def values(self) -> tuple[float, ...]:
        """Return the values."""
        return tuple(value for _, value in self.steps)

    def __str__(self) -> str:
        return "→".join(f"{value:g}" for value in self.values())
