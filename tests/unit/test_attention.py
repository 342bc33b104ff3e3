"""Losses on attention against formulas written out in float64."""

from __future__ import annotations

import re

import pytest
import torch

from distillkit.errors import UserError
from distillkit.losses import heads
from distillkit.losses.attention import AttentionKL, AttentionScoreMSE
from distillkit.losses.schedule import Linear
from distillkit.signals import Signal
from tests.captured import CHECKS, Case, batch, batch_of, leaves, rows_of, shape, signal, to
from tests.maps import kl_of, mse_of, over_queries

UNIFORM = [(0, 1), (1, 3)]
FOUR = shape(4, heads=4)
BACK = {"student": shape(2, causal=True), "teacher": shape(4, head_width=5, causal=True)}
GROUPED = {"student": shape(2, heads=4, groups=2), "teacher": shape(4, heads=4, groups=1)}
CASES = {
    "kl": Case(AttentionKL, over_queries(kl_of(), UNIFORM)),
    "kl, other head width": Case(AttentionKL, over_queries(kl_of(), UNIFORM), teacher=shape(4, head_width=5)),
    "kl, T=3": Case(
        lambda: AttentionKL("last", temperature=3.0), over_queries(kl_of(temperature=3.0), [(0, 2), (1, 3)])
    ),
    "kl, mean": Case(lambda: AttentionKL(heads="mean"), over_queries(kl_of("mean"), UNIFORM, own=(2, 4)), teacher=FOUR),
    "kl, R=3": Case(lambda: AttentionKL(heads=3), over_queries(kl_of(3), UNIFORM, 3, own=(2, 4)), teacher=FOUR),
    "kl, causal": Case(AttentionKL, over_queries(kl_of(), UNIFORM, causal=True), **BACK),
    "kl, grouped": Case(AttentionKL, over_queries(kl_of(), UNIFORM, own=(4, 4)), **GROUPED),
    "mse": Case(AttentionScoreMSE, over_queries(mse_of(), UNIFORM)),
    "mse, mean": Case(
        lambda: AttentionScoreMSE(heads="mean"), over_queries(mse_of("mean"), UNIFORM, own=(2, 4)), teacher=FOUR
    ),
    "mse, R=6": Case(lambda: AttentionScoreMSE(heads=6), over_queries(mse_of(6), UNIFORM, 6, own=(2, 4)), teacher=FOUR),
    "mse, causal": Case(AttentionScoreMSE, over_queries(mse_of(), UNIFORM, causal=True), **BACK),
    "mse, grouped": Case(
        lambda: AttentionScoreMSE(heads=2), over_queries(mse_of(2), UNIFORM, 2, own=(4, 4)), **GROUPED
    ),
}


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", CASES)
def test_every_loss(name, check):
    check(CASES[name])


def random_signals(loss, student, teacher):
    loss.bind(student, teacher)
    return [
        signal(rows_of(names, model, seed))
        for names, model, seed in ((loss.student_features, student, 1), (loss.teacher_features, teacher, 2))
    ]


@pytest.mark.parametrize("make", [AttentionKL, AttentionScoreMSE, lambda: AttentionKL(heads=3)])
def test_grouped_keys_are_repeated_keys(make):
    grouped, plain = shape(2, heads=4, groups=2), shape(2, heads=4)
    loss = make()
    said, taught = random_signals(loss, grouped, grouped)
    expected = loss(said, taught, batch())
    repeated = [
        Signal(features={n: v.repeat_interleave(4 // v.shape[1], dim=1) for n, v in features.features.items()})
        for features in (said, taught)
    ]
    loss.bind(plain, plain)
    torch.testing.assert_close(loss(*repeated, batch()), expected)


def test_a_causal_query_does_not_look_ahead():
    loss = AttentionKL()
    said, taught = random_signals(loss, shape(1, causal=True), shape(1, causal=True))
    ours = leaves(said)
    only_first = batch_of({"attention_mask": torch.ones(4, 5)}, 4)
    # The first query sees itself alone: its distribution is certain in both models.
    loss(ours, taught, only_first).backward()
    assert ours.features["layers.0.query"].grad[:, :, 0].abs().max() < 1e-15
    assert ours.features["layers.0.query"].grad[:, :, 1:].abs().min() > 0
    # The last key is seen by the last query alone.
    gradient, query = ours.features["layers.0.key"].grad[:, :, -1], ours.features["layers.0.query"][:, :, -1]
    assert torch.linalg.matrix_rank(torch.stack([gradient, query], dim=-1), rtol=1e-9).max() == 1


def test_without_an_attention_mask_the_row_is_the_item():
    images, padless = batch_of({"pixel_values": torch.zeros(4, 1)}, 4), batch((5, 5, 5, 5))
    for loss in (AttentionKL(), AttentionScoreMSE()):
        said, taught = random_signals(loss, shape(2), shape(2))
        assert loss.mask(images).tolist() == [True] * 4
        torch.testing.assert_close(loss(said, taught, images) / 4, loss(said, taught, padless) / 20)


def kept(node):
    """The shapes of what autograd keeps for the backward pass."""
    names = [name for name in dir(node) if name.startswith("_saved_")]
    saved = [getattr(node, name) for name in names] + list(getattr(node, "saved_tensors", ()))
    yield from (tuple(tensor.shape) for tensor in saved if isinstance(tensor, torch.Tensor))
    for following, _ in node.next_functions:
        if following is not None:
            yield from kept(following)


def test_memory_is_that_of_a_chunk(monkeypatch):
    """The same in pieces, and nothing of a map's size is kept for the backward pass."""
    for loss in (AttentionKL("last"), AttentionScoreMSE("last")):
        said, taught = random_signals(loss, shape(2), shape(2))
        results = []
        for budget in (1 << 20, 1):
            monkeypatch.setattr(heads, "CPU_BUDGET", budget)
            ours = leaves(said)
            value = loss(ours, taught, batch())
            assert all(size[-2:] != (5, 5) for size in kept(value.grad_fn))
            value.backward()
            results.append([value, *(ours.features[name].grad for name in sorted(ours.features))])
        torch.testing.assert_close(*results)


def test_no_gradient_is_computed_where_none_is_wanted():
    loss = AttentionKL()
    said, taught = random_signals(loss, shape(2), shape(2))
    with torch.no_grad():
        assert not loss(leaves(said), taught, batch()).requires_grad
    assert not loss(said, taught, batch()).requires_grad


def test_autocast_does_not_reach_the_loss():
    loss = AttentionKL()
    said, taught = (to(made, torch.float32) for made in random_signals(loss, shape(2), shape(2)))
    plain = loss(said, taught, batch())
    with torch.autocast("cpu", torch.bfloat16):
        assert loss(said, taught, batch()) == plain


def test_large_scores_stay_finite():
    loss = AttentionKL()
    said, taught = random_signals(loss, shape(2), shape(2))
    ours = leaves(Signal(features={name: 100 * value.float() for name, value in said.features.items()}))
    value = loss(ours, Signal(features={name: 100 * value.float() for name, value in taught.features.items()}), batch())
    value.backward()
    assert value.isfinite()
    assert all(feature.grad.isfinite().all() for feature in ours.features.values())


def test_a_temperature_may_follow_a_schedule():
    loss = AttentionKL(temperature=Linear(4.0, 1.0))
    said, taught = random_signals(loss, shape(2), shape(2))
    for progress, temperature in ((0.0, 4.0), (0.5, 2.5), (1.0, 1.0)):
        loss.advance(progress)
        plain = AttentionKL(temperature=temperature)
        plain.bind(shape(2), shape(2))
        assert loss(said, taught, batch()) == plain(said, taught, batch())


def test_the_factor_keeps_the_gradients_size_over_temperatures():
    norms = []
    for temperature in range(1, 9):
        loss = AttentionKL(temperature=float(temperature))
        said, taught = random_signals(loss, shape(1), shape(1))
        ours = leaves(Signal(features={name: 0.3 * value for name, value in said.features.items()}))
        loss(ours, Signal(features={name: 0.3 * value for name, value in taught.features.items()}), batch()).backward()
        norms.append(ours.features["layers.0.query"].grad.norm().item())
    assert max(norms) / min(norms) < 1.1


@pytest.mark.parametrize("loss", [AttentionKL, AttentionScoreMSE])
@pytest.mark.parametrize(
    ("arguments", "student", "teacher", "message"),
    [
        (
            {},
            shape(2),
            FOUR,
            "heads: the student has 2 attention heads and the teacher 4; set it to mean, or to a number of relation "
            "heads that divides 6",
        ),
        (
            {"heads": 4},
            shape(2),
            FOUR,
            "heads: 4 does not divide 6, the width of the student's heads together; choose a",
        ),
        ({"heads": 6}, FOUR, shape(2, head_width=5), "heads: 6 does not divide 10, the width of the teacher's heads"),
        ({"layers": [[2, 0]]}, shape(2), shape(2), "layers: the student has no layer 2"),
        (
            {},
            shape(2, causal=True),
            shape(2),
            "layers: tokens of the student see only what is before them, those of the teacher see everything; use",
        ),
    ],
)
def test_models_that_cannot_be_compared_are_refused(loss, arguments, student, teacher, message):
    with pytest.raises(UserError, match=re.escape(message)):
        loss(**arguments).bind(student, teacher)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AttentionKL("unifrom"), "layers: unknown layer map 'unifrom'"),
        (lambda: AttentionKL(heads=0), "heads: must be at least 1, got 0"),
        (lambda: AttentionKL(temperature=0.0), "temperature: must be above 0"),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_binding_again_starts_afresh():
    loss = AttentionKL()
    loss.bind(shape(2, causal=True), shape(4, causal=True))
    loss.bind(shape(1), shape(2))
    said, taught = random_signals(loss, shape(1), shape(2))
    assert loss.student_features == {"layers.0.query", "layers.0.key"}
    assert loss.teacher_features == {"layers.1.query", "layers.1.key"}
    again = AttentionKL()
    again.bind(shape(1), shape(2))
    assert loss(said, taught, batch()) == again(said, taught, batch())
