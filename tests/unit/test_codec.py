"""What a teacher store keeps: sizes, exactness, bounds, and gradients that are right on average."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from distillkit.cache.codec import Codec, Encoded
from distillkit.cache.dense import Dense
from distillkit.cache.formats import codec_of, encode
from distillkit.cache.select import choose, uniforms
from distillkit.cache.sparse import Sampled, TopK, TopKSampled
from distillkit.errors import UserError
from distillkit.losses.base import LogitLoss
from distillkit.losses.divergences import ForwardKL, GeneralizedJSD, ReverseKL, SoftCrossEntropy
from distillkit.losses.logits import LogitMSE
from distillkit.losses.sparse import compare
from distillkit.losses.vocabulary import WeightedTerm, logit_terms
from distillkit.signals import IGNORE, DenseLogits, HeadLogits, SparseLogits

ITEMS, CLASSES = 23, 1_000
CODECS = [
    Dense(),
    Dense("float16"),
    TopK(),
    TopK(300 // 2, 1.0, bits=11, normaliser=True),
    Sampled(),
    TopKSampled(),
    TopKSampled(3, 0.9, draws=40, bits=5, temperature=2.0, normaliser=True),
]
every = pytest.mark.parametrize("codec", CODECS, ids=[f"{codec.name} {index}" for index, codec in enumerate(CODECS)])


def logits(items: int = ITEMS, classes: int = CLASSES, seed: int = 0, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(items, classes, generator=torch.Generator().manual_seed(seed))


def seeds(items: int, first: int = 0) -> Tensor:
    return torch.arange(first, first + items)


def through(codec: Codec, values: Tensor, first: int = 0) -> SparseLogits | DenseLogits:
    """Write and read back."""
    columns = codec.encode(values, seeds(len(values), first)).pack([len(values)])
    return codec.decode(columns, values.shape[1])


def same(one: SparseLogits | DenseLogits, other: SparseLogits | DenseLogits) -> bool:
    assert type(one) is type(other)
    fields = [(getattr(one, name), getattr(other, name)) for name in vars(one)]
    return all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in fields)


@every
@pytest.mark.parametrize("classes", [2, 63, 64, 65, 1_000])
def test_rows_come_back_in_any_order_from_what_the_description_says(codec, classes):
    values, lengths = logits(classes=classes), [4, 0, 10, 1, 8]
    columns = codec.encode(values, seeds(ITEMS)).pack(lengths)
    assert all(len(rows) == len(lengths) for rows in columns.values())
    described = json.loads(json.dumps(codec.describe(classes)))
    assert set(described["columns"]) == set(columns)
    again = codec_of(described)
    assert same(again.decode(columns, classes), through(codec, values))
    order, items = [4, 1, 2], torch.cat([torch.arange(15, 23), torch.arange(4, 14)])
    some = again.decode({name: [rows[row] for row in order] for name, rows in columns.items()}, classes)
    whole = through(codec, values)
    assert len(some) == len(items)
    if isinstance(some, SparseLogits):
        for name in ("ids", "log_probs", "rest", "normaliser", "drawn", "weights"):
            ours, theirs = getattr(some, name), getattr(whole, name)
            width = 0 if ours is None or ours.dim() == 1 else ours.shape[1]
            assert ours is None or torch.equal(ours, theirs[items][:, :width] if ours.dim() == 2 else theirs[items])
    else:
        assert torch.equal(some.values, whole.values[items])


@every
def test_items_do_not_depend_on_who_comes_along(codec):
    values = logits()
    parts = [
        codec.encode(values[start : start + 5], seeds(len(values[start : start + 5]), start))
        for start in range(0, ITEMS, 5)
    ]
    assert Encoded.join(parts).pack([ITEMS]) == codec.encode(values, seeds(ITEMS)).pack([ITEMS])
    head = HeadLogits(values, torch.eye(CLASSES))
    assert encode(codec, head, seeds(ITEMS)).pack([ITEMS]) == codec.encode(values, seeds(ITEMS)).pack([ITEMS])
    assert len(codec.decode(encode(codec, head[slice(0, 0)], seeds(0)).pack([0, 0]), CLASSES)) == 0


def test_dense_logits_are_exact():
    assert torch.equal(through(Dense(), logits()).values, logits())
    torch.testing.assert_close(through(Dense("float16"), logits()).values, logits(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("scale", [0.0, 0.3, 3.0, 30.0], ids=["uniform", "flat", "usual", "sharp"])
@pytest.mark.parametrize("bits", [4, 8, 12])
def test_listed_log_probabilities_are_within_half_a_step_and_all_together_are_1(scale, bits):
    values = logits(scale=scale).double()
    exact = values.log_softmax(dim=1)
    told = through(TopK(20, 0.99, bits), values)
    there = told.ids >= 0
    best, ids = exact.topk(20, dim=1)
    assert scale == 0 or torch.equal(told.ids[there], ids[:, : told.ids.shape[1]][there])
    reached = best.exp().cumsum(dim=1)
    count = torch.minimum((reached < 0.99 - 1e-6).sum(dim=1) + 1, torch.tensor(20))
    assert torch.equal(there.sum(dim=1), count)
    probabilities = torch.where(there, told.log_probs.double().exp(), 0.0)
    torch.testing.assert_close(probabilities.sum(dim=1) + told.rest.double().exp(), torch.ones(ITEMS).double())
    step = ((best[:, 0] - best[torch.arange(ITEMS), count - 1]) + 1 / 8) / (2**bits - 1)
    found = (told.log_probs.double() - exact.gather(1, told.ids.clamp(min=0)))[there]
    # Half a step of each, as much again by scaling to the sum, and rounding of the rest to float16.
    assert (
        found.abs()
        <= step.unsqueeze(1).expand_as(there)[there] + 1e-3 * (1 + 1 / reached[:, 0:1].expand_as(there)[there])
    ).all()


def test_the_rest_keeps_its_digits_however_small():
    values = torch.zeros(3, CLASSES, dtype=torch.float64)
    values[:, 7] = torch.tensor([10.0, 20.0, 40.0])
    expected = (CLASSES - 1) * torch.exp(-values[:, 7]) / (1 + (CLASSES - 1) * torch.exp(-values[:, 7]))
    told = through(TopKSampled(1, draws=50), values)
    torch.testing.assert_close(told.rest.double(), expected.log(), rtol=1e-3, atol=1e-3)
    assert (told.drawn >= 0).sum(dim=1).tolist() == [math.ceil(50 * share) for share in expected.tolist()]
    assert not (told.drawn == 7).any()


def test_with_every_class_listed_nothing_is_left():
    told = through(TopKSampled(12, least=0.0, draws=5, bits=16), logits(classes=9))
    assert (told.rest == -torch.inf).all()
    assert told.drawn.shape == (ITEMS, 0)
    torch.testing.assert_close(told.rows(0, ITEMS), logits(classes=9).log_softmax(dim=1), rtol=0, atol=1e-3)


@pytest.mark.parametrize(("k", "draws"), [(0, 7), (5, 11), (40, 3)])
def test_draws_have_the_probabilities_of_what_is_left(k, draws):
    """Over evenly spaced first points the counts are those of a line cut into pieces: exactly what was expected."""
    values, grid = logits(4, 200), 4_000
    p = values.double().softmax(dim=1)
    for item in range(4):
        first = (torch.arange(grid, dtype=torch.float64) + 0.5) / grid
        chosen = choose(values[item : item + 1].expand(grid, -1).contiguous(), k, 1.0, 0.0, draws, first)
        left = p[item].clone()
        left[chosen.ids[0]] = 0
        number = math.ceil(draws * left.sum())
        assert (chosen.draws == number).all()
        taken = chosen.drawn[:, :number]
        assert (taken.diff(dim=1) >= 0).all()
        counts = torch.bincount(taken.flatten(), minlength=200).double() / grid
        torch.testing.assert_close(counts, number * left / left.sum(), rtol=0, atol=2.1 * number / grid)
        each = torch.stack([torch.bincount(row, minlength=200) for row in taken[:200]])
        assert ((each - number * left / left.sum()).abs() < 1 + 1e-5).all()


def test_seeds_look_independent():
    found = uniforms(torch.arange(-50_000, 50_000))
    assert found.min() >= 0
    assert found.max() < 1
    assert abs(found.mean() - 0.5) < 0.005
    assert abs(torch.corrcoef(torch.stack([found[1:], found[:-1]]))[0, 1]) < 0.015
    histogram = torch.histc(found.float(), 100, 0, 1)
    assert ((histogram - 1_000) ** 2 / 1_000).sum() < 160


def gradient(loss: LogitLoss, student: Tensor, teacher: SparseLogits | DenseLogits) -> Tensor:
    leaf = student.clone().requires_grad_()
    (values,) = compare([loss], leaf, teacher, torch.full((len(student),), IGNORE))
    return torch.autograd.grad(values.sum(), leaf)[0]


@pytest.mark.parametrize(
    "codec", [Sampled(12), TopKSampled(4, least=0.0, draws=8, bits=16)], ids=lambda codec: codec.name
)
@pytest.mark.parametrize("loss", [ForwardKL, SoftCrossEntropy, lambda: GeneralizedJSD(0.0)], ids=["kl", "ce", "jsd 0"])
def test_the_mean_gradient_over_draws_is_the_full_one(codec, loss):
    """Within 4 standard errors of each class, and as a whole by chi-square."""
    teacher, student, repeats = logits(3, 150, scale=2.0), logits(3, 150, seed=1).double(), 3_000
    full = gradient(loss(), student, DenseLogits(teacher.double()))
    told = through(codec, teacher.repeat(repeats, 1))
    told = replace(told, log_probs=told.log_probs.double(), weights=told.weights.double(), rest=told.rest.double())
    found = gradient(loss(), student.repeat(repeats, 1), told).view(repeats, 3, 150)
    mean, error = found.mean(dim=0), found.std(dim=0) / math.sqrt(repeats)
    drawn = error > 1e-6
    ratio = (mean - full)[drawn] / error[drawn]
    assert ratio.abs().max() < 4.5
    assert ratio.square().mean() < 1.25
    torch.testing.assert_close(mean[~drawn], full[~drawn], rtol=0, atol=2e-4)  # float16 of the rest
    assert (found - full).norm(dim=-1).mean() > 20 * (mean - full).norm(dim=-1).mean()


def size(codec: Codec, values: Tensor) -> float:
    """Bytes an item."""
    columns = codec.encode(values, seeds(len(values))).pack([len(values)])
    return sum(len(row) for rows in columns.values() for row in rows) / len(values)


def test_what_is_likelier_than_a_draw_is_listed_for_less_noise_and_fewer_bytes():
    teacher, student = logits(200, 2_000), logits(200, 2_000, seed=1)
    full = gradient(ForwardKL(), student, DenseLogits(teacher))
    noise, sizes = [], []
    for codec in (TopKSampled(20, least=1 / 32, draws=32), Sampled(32)):
        noise.append(float((gradient(ForwardKL(), student, through(codec, teacher)) - full).square().sum()))
        sizes.append(size(codec, teacher))
    assert noise[0] < noise[1]
    assert sizes[0] < 0.9 * sizes[1]
    told = through(TopKSampled(20, least=1 / 32, draws=32), teacher)
    p = teacher.softmax(dim=1)
    assert torch.equal((told.ids >= 0).sum(dim=1), (p >= 1 / 32).sum(dim=1).clamp(1, 20))


@pytest.mark.parametrize("loss", [ReverseKL(), GeneralizedJSD(0.5), ForwardKL(2.0), LogitMSE(centred=True)])
def test_other_losses_see_the_head_and_one_bucket(loss):
    teacher, student = logits(), logits(seed=1)
    mixed, listed = through(TopKSampled(9, 0.95, 0.0, draws=20), teacher), through(TopK(9, 0.95), teacher)
    assert torch.equal(gradient(loss, student, mixed), gradient(loss, student, listed))
    with pytest.raises(UserError, match=r"^loss: \w+ needs the teacher's likeliest classes.*top_k_sampled$"):
        gradient(loss, student, through(Sampled(), teacher))


@pytest.mark.parametrize("temperature", [0.5, 2.0, 4.0])
def test_at_its_own_temperature_a_store_is_exact(temperature):
    """The bucket of all others is right then, and at temperature 1 only bounded."""
    teacher, student = logits(classes=60).double(), logits(classes=60, seed=1).double()
    told = through(TopK(6, 1.0, bits=16, temperature=temperature, normaliser=True), teacher)
    p, q = ((values / temperature).softmax(dim=1) for values in (teacher, student))
    p, q = (torch.cat([x.gather(1, told.ids), 1 - x.gather(1, told.ids).sum(dim=1, keepdim=True)], 1) for x in (p, q))
    expected = temperature**2 * (p * (p / q).log()).sum(dim=1)
    (values,) = compare([ForwardKL(temperature)], student, told, torch.full((ITEMS,), IGNORE))
    torch.testing.assert_close(values, expected, rtol=2e-3, atol=2e-3)
    (squared,) = compare([LogitMSE()], student, told, torch.full((ITEMS,), IGNORE))
    expected = (student - teacher).gather(1, told.ids).square().mean(dim=1)
    torch.testing.assert_close(squared, expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("temperature", [0.7, 2.0, 5.0])
def test_at_another_temperature_the_head_is_exact_and_the_bucket_bounded(temperature):
    teacher = logits(classes=60).double()
    told = through(TopK(6, 1.0, bits=16), teacher)
    exact = teacher.log_softmax(dim=1)
    heads = told.log_probs.double() / temperature
    torch.testing.assert_close(
        heads.diff(dim=1), exact.gather(1, told.ids).diff(dim=1) / temperature, rtol=0, atol=1e-3
    )
    others = exact.scatter(1, told.ids, -torch.inf)
    true, r, most = (others / temperature).exp().sum(dim=1), others.exp().sum(dim=1), others.amax(dim=1).exp()
    even = 54 * (r / 54) ** (1 / temperature)
    uneven = r / most * most ** (1 / temperature)
    low, high = (uneven, even) if temperature > 1 else (even, uneven)
    assert (low <= true).all()
    assert (true <= high).all()
    taken = 54 * (told.each.double() / temperature).exp()
    torch.testing.assert_close(taken, even, rtol=2e-3, atol=0)


@pytest.mark.parametrize(
    "codec", [TopK(9, 0.95), Sampled(), TopKSampled(9, 0.95, 0.0, draws=20)], ids=lambda codec: codec.name
)
@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("columns", [CLASSES, CLASSES + 7, CLASSES - 300], ids=["same", "wider", "narrower"])
@pytest.mark.parametrize("sharp", [0.3, 6.0, 300.0], ids=["flat student", "sharp student", "student that is sure"])
def test_the_vocabulary_pass_takes_the_derivative_of_the_same(codec, temperature, columns, sharp):
    """By hand and in float32, against autograd in float64; also where the student leaves the bucket almost nothing."""
    if codec.name == "sampled" and temperature != 1:
        pytest.skip("there is nothing but draws")
    told = through(codec, logits())
    hidden, weight = logits(ITEMS, 16, seed=5, scale=0.25), logits(columns, 16, seed=6, scale=sharp)
    labels, counted = torch.arange(ITEMS) * 17 % columns, torch.ones(ITEMS, dtype=torch.bool)
    terms = [WeightedTerm(ForwardKL(temperature), counted, torch.tensor(0.7))]
    terms += [WeightedTerm(SoftCrossEntropy(temperature), counted, torch.tensor(0.2))]
    results = []
    for kind in (torch.float32, torch.float64):
        inputs = [x.detach().to(kind, copy=True).requires_grad_() for x in (hidden, weight)]
        student = HeadLogits(*inputs) if kind == torch.float32 else DenseLogits(inputs[0] @ inputs[1].T)
        loss, sums = logit_terms(student, told, labels, terms)
        loss.backward()
        results.append((sums.double(), *(x.grad.double() for x in inputs)))
    for mine, exact in zip(*results, strict=True):
        assert (mine - exact).norm() <= 2e-5 * exact.norm()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TopK(0), r"^generate.codec.k: must be 1 … 255, got 0$"),
        (lambda: TopKSampled(12, draws=256), r"^generate.codec.draws: must be 1 … 255, got 256$"),
        (lambda: TopK(mass=1.5), r"^generate.codec.mass: must be in \(0, 1\], got 1.5$"),
        (lambda: TopKSampled(least=1.0), r"^generate.codec.least: must be in \[0, 1\), got 1.0$"),
        (lambda: TopK(bits=0), r"^generate.codec.bits: must be 1 … 16, got 0$"),
        (lambda: Sampled(temperature=0.0), r"^generate.codec.temperature: must be above 0, got 0.0$"),
        (lambda: Dense("int8"), r"^generate.codec.dtype: must be one of float32, float16, got 'int8'$"),
    ],
)
def test_bad_settings_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


@every
def test_columns_that_do_not_fit_are_refused(codec):
    columns = codec.encode(logits(), seeds(ITEMS)).pack([10, 13])
    broken = {name: list(rows) for name, rows in columns.items()}
    name = max(broken, key=lambda name: len(broken[name][1]))
    broken[name][1] = broken[name][1][:-1]
    with pytest.raises(ValueError):
        codec.decode(broken, CLASSES)
    with pytest.raises(ValueError, match="rows of 24 items cannot hold 23"):
        codec.encode(logits(), seeds(ITEMS)).pack([10, 14])


def test_sizes_at_large_vocabularies():
    """Bytes an item at most: counts, rest, span and normaliser, 8 bits a gap, an id as wide as the vocabulary."""
    for classes, width in ((50_304, 16), (151_936, 18)):
        values = logits(64, classes, scale=1.0)
        for codec in (TopK(20, 1.0), TopKSampled(10, least=0.0, draws=16), Sampled(24)):
            slots = codec.k + codec.draws
            head = (4 + (codec.k - 1)) if codec.k else 0
            assert size(codec, values) == pytest.approx(slots * width / 8 + head + bool(codec.draws), abs=0.5)


def test_half_precision_logits_are_read_in_full():
    values = logits().bfloat16()
    assert same(through(TopKSampled(), values), through(TopKSampled(), values.float()))
    assert np.isfinite(through(TopKSampled(), values).log_probs.numpy()[:, 0]).all()
