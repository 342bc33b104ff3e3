"""Several teachers as one, against the mixture of their probabilities in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from distillkit.cache.mixture import mix
from distillkit.cache.sparse import Sampled, TopK, TopKSampled
from distillkit.errors import UserError
from distillkit.losses.divergences import ForwardKL, ReverseKL
from distillkit.losses.sparse import compare
from distillkit.signals import IGNORE, DenseLogits, SparseLogits

SHARES = 0.25, 0.75
CLASSES, TIMES = 12, 4000


def test_the_mixture_is_that_of_the_probabilities():
    torch.manual_seed(0)
    logits = [torch.randn(7, 9), 3 * torch.randn(7, 9)]
    expected = sum(w * one.double().softmax(dim=-1) for w, one in zip((0.25, 0.75), logits, strict=True))
    dense = mix([DenseLogits(one) for one in logits], [0.25, 0.75], "classes")
    assert dense.values.exp() == pytest.approx(expected, abs=1e-6)
    labels = mix([DenseLogits(one) for one in logits], [0.25, 0.75], "labels")
    on = sum(w * one.double().sigmoid() for w, one in zip((0.25, 0.75), logits, strict=True))
    assert labels.values.double().sigmoid() == pytest.approx(on, abs=1e-6)
    scores = mix([DenseLogits(one) for one in logits], [0.25, 0.75], "scores")
    assert scores.values == pytest.approx(0.25 * logits[0] + 0.75 * logits[1], abs=1e-6)


@pytest.mark.parametrize("k", [2, 5, 9])
def test_the_mixture_of_sparse_teachers_spreads_what_each_has_left(k):
    torch.manual_seed(0)
    sparse = [SparseLogits.best(scale * torch.randn(7, 9), k) for scale in (1, 3)]
    expected = sum(w * one.rows(0, 7).double().exp() for w, one in zip((0.25, 0.75), sparse, strict=True))
    mixed = mix(sparse, [0.25, 0.75], "classes")
    assert mixed.rows(0, 7).double().exp() == pytest.approx(expected, abs=1e-6)
    listed = [set(row) - {-1} for row in mixed.ids.tolist()]
    assert listed == [set(a) | set(b) for a, b in zip(*(one.ids.tolist() for one in sparse), strict=True)]


def kept(logits: list[torch.Tensor], codecs: list) -> list[SparseLogits]:
    """The same item of each teacher, kept again and again with other draws."""
    found = []
    for index, (one, codec) in enumerate(zip(logits, codecs, strict=True)):
        coded = codec.encode(one.float().expand(TIMES, -1).contiguous(), torch.arange(TIMES) + 10_000 * index)
        found.append(codec.decode(coded.pack([TIMES]), CLASSES))
    return found


MIXED = {
    "head and tail": [TopKSampled(k=3, draws=6), TopKSampled(k=4, draws=6)],
    "draws alone": [Sampled(draws=6), Sampled(draws=9)],
    "draws beside a head": [Sampled(draws=6), TopKSampled(k=3, draws=6)],
    "all classes beside draws": [TopK(k=CLASSES, mass=1.0), Sampled(draws=6)],
    "at another temperature": [TopKSampled(k=3, draws=6, temperature=2.0), Sampled(draws=6, temperature=2.0)],
}


@pytest.mark.parametrize("codecs", MIXED.values(), ids=MIXED)
def test_draws_take_part_for_losses_that_are_linear(codecs):
    """On average over draws their gradient is that of the mixture Σ w softmax(z / T)."""
    torch.manual_seed(0)
    logits, temperature = [2 * torch.randn(CLASSES).double() for _ in codecs], codecs[0].temperature
    target = sum(w * (one / temperature).softmax(dim=-1) for w, one in zip(SHARES, logits, strict=True))
    student = torch.randn(CLASSES).expand(TIMES, -1).clone().requires_grad_()
    mixed = mix(kept(logits, codecs), SHARES, "classes")
    assert mixed.temperature == temperature
    assert mixed[2:5].with_draws().ids.tolist() == mixed.with_draws().ids[2:5].tolist()
    (loss,) = compare([ForwardKL(temperature)], student, mixed, torch.full((TIMES,), IGNORE))
    (found,) = torch.autograd.grad(loss.sum(), student)
    expected = temperature * ((student[0].detach().double() / temperature).softmax(dim=-1) - target)
    error = found.double().std(dim=0) / TIMES**0.5
    assert ((found.double().mean(dim=0) - expected).abs() < 5 * error + 4e-3).all()  # 8 bits of what is listed


def test_other_losses_see_what_is_listed_beside_one_that_is_linear():
    torch.manual_seed(0)
    logits = [2 * torch.randn(CLASSES) for _ in range(2)]
    with_draws = kept(logits, [TopKSampled(k=3, draws=6)] * 2)
    mixed = mix(with_draws, SHARES, "classes")
    listed = mix([replace(one, drawn=None, weights=None) for one in with_draws], SHARES, "classes")
    student, labels = torch.randn(TIMES, CLASSES), torch.full((TIMES,), IGNORE)
    _, reverse = compare([ForwardKL(), ReverseKL()], student, mixed, labels)
    (expected,) = compare([ReverseKL()], student, listed, labels)
    torch.testing.assert_close(reverse, expected)
    assert mixed.rows(0, 1).exp().sum() == pytest.approx(1, abs=1e-5)


def test_where_a_teacher_has_draws_alone_other_losses_are_refused():
    mixed = mix(kept([torch.randn(CLASSES)] * 2, [Sampled(), TopK(k=3)]), SHARES, "classes")
    with pytest.raises(UserError, match="ReverseKL needs the teacher's likeliest classes, and only random draws"):
        compare([ReverseKL()], torch.zeros(TIMES, CLASSES), mixed, torch.full((TIMES,), IGNORE))


def test_stores_that_do_not_mix_are_refused():
    one, other = kept([torch.randn(CLASSES)] * 2, [TopK(k=3), TopK(k=3)])
    with pytest.raises(UserError, match="different temperatures"):
        mix([one, replace(other, temperature=2.0)], SHARES, "classes")
    with pytest.raises(UserError, match="of whole and of sparse"):
        mix([one, DenseLogits(torch.zeros(TIMES, CLASSES))], SHARES, "classes")


@pytest.mark.parametrize("codec", [TopK(k=3), Sampled(), TopKSampled(k=3)], ids=lambda codec: codec.name)
def test_no_items_are_a_mixture_too(codec):
    coded = codec.encode(torch.zeros(0, CLASSES), torch.zeros(0, dtype=torch.int64)).pack([0, 0])
    mixed = mix([codec.decode(coded, CLASSES)] * 2, SHARES, "classes")
    assert len(mixed) == 0


def test_a_teacher_without_weight_changes_nothing():
    torch.manual_seed(0)
    one, other = (SparseLogits.best(torch.randn(7, CLASSES), 4) for _ in range(2))
    mixed = mix([one, other], [1.0, 0.0], "classes")
    torch.testing.assert_close(mixed.rows(0, 7).exp(), one.rows(0, 7).exp())
