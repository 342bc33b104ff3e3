"""The plan of global batches: every row once an epoch, pure in seed and step, little padding."""

from __future__ import annotations

import numpy as np
import pytest

from distillkit.data.batches import BatchPlan, by_length, micro_batches

LENGTHS = np.random.default_rng(0).integers(2, 200, size=1003)


def plan(batch_size: int = 8, seed: int = 1, group: bool = True) -> BatchPlan:
    return BatchPlan(LENGTHS, batch_size, seed, group)


def padding(batches: list[np.ndarray]) -> int:
    return sum(int(LENGTHS[rows].max()) * len(rows) - int(LENGTHS[rows].sum()) for rows in batches)


@pytest.mark.parametrize("group", [True, False])
def test_an_epoch_has_every_row_exactly_once(group):
    batches = plan(group=group)
    assert batches.steps_per_epoch == 126
    for epoch in range(2):
        drawn = [batches.rows(epoch * 126 + step) for step in range(126)]
        assert sorted(np.concatenate(drawn)) == list(range(1003))
        assert sorted(map(len, drawn)) == [3] + [8] * 125


@pytest.mark.parametrize("group", [True, False])
def test_a_step_depends_on_nothing_but_seed_and_step(group):
    first = plan(group=group)
    expected = {step: first.rows(step).tolist() for step in range(300)}
    for step in (299, 3, 130, 0):
        assert plan(group=group).rows(step).tolist() == expected[step]
    assert plan(seed=2, group=group).rows(0).tolist() != expected[0]
    assert expected[0] != expected[126]


def test_grouping_by_length_saves_most_of_the_padding():
    grouped, mixed = ([plan(group=group).rows(step) for step in range(126)] for group in (True, False))
    assert padding(grouped) < 0.2 * padding(mixed)


def test_long_and_short_batches_come_in_random_order():
    means = [LENGTHS[plan().rows(step)].mean() for step in range(50)]
    assert abs(np.corrcoef(means, range(50))[0, 1]) < 0.5


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
@pytest.mark.parametrize("size", [1, 2, 4, 8])
@pytest.mark.parametrize("rows", [1, 3, 8])
def test_processes_share_a_batch_in_equally_many_pieces(processes, size, rows):
    batch = np.arange(100, 100 + rows)
    shares = [list(micro_batches(batch, rank, processes, size)) for rank in range(processes)]
    assert len({len(share) for share in shares}) == 1
    assert all(0 < len(piece) <= size for share in shares for piece, _ in share)
    real = [int(row) for share in shares for piece, counts in share if counts for row in piece]
    assert sorted(real) == batch.tolist()


def test_batches_for_evaluation_have_every_row_once_longest_first():
    batches = by_length(LENGTHS, 64)
    assert sorted(np.concatenate(batches)) == list(range(1003))
    assert all(np.diff(LENGTHS[np.concatenate(batches)]) <= 0)
    assert max(map(len, batches)) == 64
