"""Layer maps: any depth against any depth, and bad maps refused."""

from __future__ import annotations

import re

import pytest

from distillkit.errors import UserError
from distillkit.losses.layers import check_layers, layer_pairs

DEPTHS = [(student, teacher) for student in range(1, 14) for teacher in (1, 2, 3, 5, 6, 7, 12, 13, 24, 25)]


@pytest.mark.parametrize(
    ("layers", "student", "teacher", "expected"),
    [
        ("uniform", 4, 12, [(0, 2), (1, 5), (2, 8), (3, 11)]),  # TinyBERT-4: m = 3 n
        ("uniform", 6, 12, [(0, 1), (1, 3), (2, 5), (3, 7), (4, 9), (5, 11)]),
        ("skip", 6, 12, [(0, 1), (1, 3), (2, 5), (3, 7), (4, 9)]),  # PKD-Skip: teacher's layers 2, 4, 6, 8, 10 from 1
        ("uniform", 3, 5, [(0, 1), (1, 2), (2, 4)]),
        ("uniform", 5, 3, [(1, 0), (2, 1), (4, 2)]),
        ("last", 3, 5, [(0, 2), (1, 3), (2, 4)]),
        ("last", 5, 3, [(2, 0), (3, 1), (4, 2)]),
        ("first", 3, 5, [(0, 0), (1, 1), (2, 2)]),
        ([[0, 4], [-1, -2], [-3, 0]], 3, 5, [(0, 4), (2, 3), (0, 0)]),
    ],
)
def test_by_hand(layers, student, teacher, expected):
    assert layer_pairs(layers, student, teacher) == expected


@pytest.mark.parametrize("layers", ["uniform", "last", "first"])
def test_any_depth_against_any(layers):
    for student, teacher in DEPTHS:
        pairs = layer_pairs(layers, student, teacher)
        assert len(pairs) == min(student, teacher)
        for model, depth in enumerate((student, teacher)):
            mapped = [pair[model] for pair in pairs]
            assert mapped == sorted(set(mapped))  # in order, none twice
            assert 0 <= mapped[0] <= mapped[-1] < depth
        if layers != "first":
            assert pairs[-1] == (student - 1, teacher - 1)
        if layers == "uniform":
            gaps = [abs((ours + 1) / student - (theirs + 1) / teacher) for ours, theirs in pairs]
            assert max(gaps) <= 0.5 / max(student, teacher) + 1e-12
            assert pairs == [pair[::-1] for pair in layer_pairs(layers, teacher, student)]


def test_skip_is_uniform_without_the_last():
    for student, teacher in DEPTHS:
        if min(student, teacher) > 1:
            assert layer_pairs("skip", student, teacher) == layer_pairs("uniform", student, teacher)[:-1]
    with pytest.raises(UserError, match="use uniform"):
        layer_pairs("skip", 1, 5)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("unifrom", "layers: unknown layer map 'unifrom'; did you mean 'uniform'? (or pairs"),
        ("embeddings", "layers: unknown layer map 'embeddings'"),
        ([], "layers: must be pairs"),
        ([[1, 2], [3]], "layers: must be pairs [[student's layer, teacher's layer], …], got [[1, 2], [3]]"),
        ([[3, 0]], "layers: the student has no layer 3; its layers are 0 … 2"),
        ([[-4, 0]], "layers: the student has no layer -4"),
        ([[0, 5]], "layers: the teacher has no layer 5; its layers are 0 … 4"),
    ],
)
def test_bad_maps_are_refused(layers, message):
    with pytest.raises(UserError, match=re.escape(message)):
        layer_pairs(layers, 3, 5)


def test_a_loss_may_know_other_names():
    check_layers("embeddings", "embeddings")
    with pytest.raises(UserError, match="did you mean 'embeddings'"):
        check_layers("embedings", "embeddings")
