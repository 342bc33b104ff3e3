"""Losses on hidden states against formulas written out in float64."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from distillkit.errors import UserError
from distillkit.losses.hidden import HiddenCosine, HiddenMSE
from distillkit.losses.vectors import pool, unit
from distillkit.signals import Signal
from tests.captured import CHECKS, Case, batch, batch_of, rows_of, shape, signal, weights

WIDE = shape(4, head_width=5)
PAIR = [["a.tokens", "b.tokens"]]


def mse(s, t):
    return sum((x - y) ** 2 for x, y in zip(s, t, strict=True)) / len(s)


def pkd(s, t):
    return sum((x - y) ** 2 for x, y in zip(s / np.sqrt(s @ s), t / np.sqrt(t @ t), strict=True))


def cosine(s, t):
    return 1 - (s @ t) / (np.sqrt(s @ s) * np.sqrt(t @ t))


def of(between, pairs, pooling=None):
    """Σ over tokens (or rows) of the mean over pairs of names."""

    def vectors(value):
        if value.ndim == 1:
            return [value]
        return {None: list(value), "first": [value[0]], "last": [value[-1]], "mean": [value.sum(0) / len(value)]}[
            pooling
        ]

    def formula(student, teacher, loss):
        total = 0.0
        for ours, theirs in zip(student, teacher, strict=True):
            for index, (name, other) in enumerate(pairs):
                for s, t in zip(vectors(ours[name]), vectors(theirs[other]), strict=True):
                    projector = weights(loss, index)
                    s = s if projector is None else projector[0] @ s + projector[1]
                    total += between(s, t) / len(pairs)
        return total

    return formula


UNIFORM = [("layers.0.hidden", "layers.1.hidden"), ("layers.1.hidden", "layers.3.hidden")]
TOP = [("layers.1.hidden", "layers.3.hidden")]
CASES = {
    "mse": Case(HiddenMSE, of(mse, UNIFORM)),
    "mse, projected": Case(HiddenMSE, of(mse, UNIFORM), teacher=WIDE),
    "mse, orthogonal": Case(lambda: HiddenMSE(projector="orthogonal"), of(mse, UNIFORM), teacher=WIDE),
    "mse, narrower": Case(lambda: HiddenMSE(projector="orthogonal"), of(mse, UNIFORM), student=shape(2, head_width=5)),
    "mse of embeddings": Case(lambda: HiddenMSE("embeddings"), of(mse, [("embeddings", "embeddings")]), teacher=WIDE),
    "pkd": Case(lambda: HiddenMSE("skip", pooling="first", normalise=True), of(pkd, UNIFORM[:1], "first")),
    "mean of tokens": Case(lambda: HiddenMSE([[-1, -1]], pooling="mean"), of(mse, TOP, "mean")),
    "last token": Case(lambda: HiddenCosine([[-1, -1]], pooling="last"), of(cosine, TOP, "last"), teacher=WIDE),
    "cosine": Case(HiddenCosine, of(cosine, UNIFORM)),
    "modules": Case(lambda: HiddenMSE(modules=PAIR), of(mse, [("module:a.tokens", "module:b.tokens")]), zero=False),
    "pooler": Case(
        lambda: HiddenCosine(modules=[["row", "row"]], pooling="pooled"), of(cosine, [("module:row", "module:row")])
    ),
}


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", CASES)
def test_every_loss(name, check):
    check(CASES[name])


def test_which_items_count():
    tokens = batch().inputs["attention_mask"].bool()
    assert HiddenMSE().mask(batch()).equal(tokens)
    assert HiddenMSE(modules=PAIR).mask(batch()).equal(tokens)
    assert HiddenMSE(pooling="mean").mask(batch()).tolist() == [True] * 4
    assert HiddenMSE(modules=PAIR, pooling="pooled").mask(batch()).tolist() == [True] * 4


@pytest.mark.parametrize("make", [HiddenMSE, lambda: HiddenMSE(pooling="mean"), lambda: HiddenMSE(pooling="last")])
def test_without_an_attention_mask_every_position_counts_and_the_row_is_the_item(make):
    loss = make()
    loss.bind(shape(2), shape(4))
    student = signal(rows_of(loss.student_features, shape(2), 1, (5, 5, 5)))
    teacher = signal(rows_of(loss.teacher_features, shape(4), 2, (5, 5, 5)))
    images, padless = batch_of({"pixel_values": torch.zeros(3, 1)}, 3), batch((5, 5, 5))
    assert loss.mask(images).tolist() == [True] * 3
    mean = loss(student, teacher, images) / loss.mask(images).sum()
    torch.testing.assert_close(mean, loss(student, teacher, padless) / loss.mask(padless).sum())


def test_pooling_by_hand():
    feature = torch.arange(8.0).view(1, 4, 2)
    tokens = torch.tensor([[False, True, True, False]])
    assert pool(feature, tokens, "first").tolist() == [[2, 3]]
    assert pool(feature, tokens, "last").tolist() == [[4, 5]]
    assert pool(feature, tokens, "mean").tolist() == [[3, 4]]
    assert pool(feature, None, "last").tolist() == [[6, 7]]
    assert pool(feature, None, "mean").tolist() == [[3, 4]]


def test_zero_vectors_have_finite_gradients():
    for loss in (HiddenCosine(), HiddenMSE(normalise=True)):
        loss.bind(shape(1), shape(1))
        zeros = torch.zeros(4, 5, 6, requires_grad=True)
        said, taught = (Signal(features={"layers.0.hidden": value}) for value in (zeros, torch.ones(4, 5, 6)))
        loss(said, taught, batch()).backward()
        assert zeros.grad.isfinite().all()
    assert unit(torch.zeros(3)).tolist() == [0, 0, 0]


def test_near_vectors_lose_no_digits():
    student = torch.ones(4, 5, 6)
    student[:, :, 0] += 1e-4
    loss = HiddenCosine()
    loss.bind(shape(1), shape(1))
    said, taught = (Signal(features={"layers.0.hidden": value}) for value in (student, torch.ones(4, 5, 6)))
    row = student[0, 0].double().numpy()
    assert loss(said, taught, batch()).item() == pytest.approx(13 * cosine(row, np.ones(6)), rel=5e-3)


def test_autocast_does_not_reach_the_loss():
    loss = HiddenMSE()
    loss.bind(shape(2), shape(2, head_width=5))
    student = {name: torch.randn(4, 5, 6) for name in loss.student_features}
    teacher = {name: torch.randn(4, 5, 10) for name in loss.teacher_features}
    plain = loss(Signal(features=student), Signal(features=teacher), batch())
    with torch.autocast("cpu", torch.bfloat16):
        assert loss(Signal(features=student), Signal(features=teacher), batch()) == plain


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layers": "embedings"}, "layers: unknown layer map 'embedings'; did you mean 'embeddings'?"),
        ({"layers": "last", "modules": PAIR}, "layers: both layers and modules are given; set one of them to null"),
        ({"modules": []}, "modules: must be [[student's path, teacher's path], …], got []"),
        ({"modules": [["a"]]}, "modules: must be"),
        ({"pooling": "pooled"}, "pooling: a layer gives one vector a token, nothing pooled; use first, last or mean"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(UserError, match=re.escape(message)):
        HiddenMSE(**arguments)


def test_what_models_cannot_give_is_refused():
    with pytest.raises(UserError, match="projector: the student is 6 wide and the teacher 10"):
        HiddenMSE(projector=None).bind(shape(2), WIDE)
    with pytest.raises(UserError, match="layers: the student has no layer 7"):
        HiddenMSE([[7, 0]]).bind(shape(2), WIDE)


@pytest.mark.parametrize(
    ("pooling", "sizes", "message"),
    [
        (
            None,
            ((4, 5, 6), (4, 5, 10)),
            "the student's module:a.tokens gives [13, 6] and the teacher's module:b.tokens",
        ),
        (None, ((4, 6), (4, 6)), "a.tokens gives [4, 6], not one vector a token; set pooling: pooled"),
        (None, ((4, 9, 6), (4, 9, 6)), "a.tokens gives [4, 9, 6], not one vector a token"),
        ("pooled", ((4, 5, 6), (4, 6)), "a.tokens gives [4, 5, 6], not one vector a row; set pooling: first, last or"),
    ],
)
def test_modules_of_other_shapes_are_refused_at_first_use(pooling, sizes, message):
    loss = HiddenMSE(modules=PAIR, pooling=pooling)
    loss.bind(shape(2), WIDE)
    said, taught = (
        Signal(features={f"module:{path}": torch.zeros(size)}) for path, size in zip(PAIR[0], sizes, strict=True)
    )
    with pytest.raises(UserError, match=re.escape(message)):
        loss(said, taught, batch())
