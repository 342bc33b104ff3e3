"""Relations between tokens and between rows against formulas written out in float64."""

from __future__ import annotations

import re
from itertools import product
from math import fsum, sqrt

import numpy as np
import pytest
import torch

from distillkit.errors import UserError
from distillkit.losses.relations import RelationKL, RKDAngle, RKDDistance, SimilarityPreserving
from distillkit.signals import Signal
from tests.captured import CHECKS, Case, batch, leaves, rows_of, shape, signal
from tests.maps import kl_of, over_queries

MINILM = (("query", "key"), ("value", "value"))
MINILM2 = (("query", "query"), ("key", "key"), ("value", "value"))
TOP = [(1, 3)]
WIDE = shape(4, head_width=5)


def huber(error):
    return error**2 / 2 if abs(error) <= 1 else abs(error) - 0.5


def norm(vector):
    return sqrt(fsum(x * x for x in vector))


def distance(student, teacher):
    def relative(vectors):
        between = [[norm(a - b) for b in vectors] for a in vectors]
        some = [value for line in between for value in line if value > 0]
        return [[value / (fsum(some) / len(some)) for value in line] for line in between]

    s, t, n = relative(student), relative(teacher), len(student)
    return fsum(huber(s[i][j] - t[i][j]) / (n - 1) for i, j in product(range(n), repeat=2) if i != j)


def angle(student, teacher):
    def cosine(vectors, i, j, k):
        first, second = vectors[i] - vectors[j], vectors[k] - vectors[j]
        return (first @ second) / (norm(first) * norm(second))

    n = len(student)
    triples = [(i, j, k) for i, j, k in product(range(n), repeat=3) if len({i, j, k}) == 3]
    errors = [huber(cosine(student, *triple) - cosine(teacher, *triple)) for triple in triples]
    return fsum(errors) / ((n - 1) * (n - 2))


def similarity(student, teacher):
    def rows(vectors):
        products = [[float(a @ b) for b in vectors] for a in vectors]
        return [[value / norm(line) for value in line] for line in products]

    s, t, n = rows(student), rows(teacher), len(student)
    return fsum((s[i][j] - t[i][j]) ** 2 / n for i, j in product(range(n), repeat=2))


def of(between, pairs, pooled):
    """Mean over pairs of names, of the sum over rows."""

    def formula(student, teacher, loss):
        values = [
            between([pooled(row[ours]) for row in student], [pooled(row[theirs]) for row in teacher])
            for ours, theirs in pairs
        ]
        return fsum(values) / len(values)

    return formula


HIDDEN = [("layers.1.hidden", "layers.3.hidden")]
UNIFORM = [("layers.0.hidden", "layers.1.hidden"), *HIDDEN]
ROWS = {
    "distance": (RKDDistance, distance),
    "angle": (RKDAngle, angle),
    "similarity": (SimilarityPreserving, similarity),
}
BACK = {"student": shape(2, causal=True), "teacher": shape(4, head_width=5, causal=True)}
CASES = {
    "minilmv2": Case(
        lambda: RelationKL(heads=3), over_queries(kl_of(3), TOP, 3, MINILM2, own=(2, 4)), teacher=shape(4, 4)
    ),
    "minilm": Case(
        lambda: RelationKL(["query-key", "value-value"]), over_queries(kl_of(), TOP, None, MINILM), teacher=WIDE
    ),
    "chosen layers": Case(
        lambda: RelationKL(["value-key"], [[0, 1], [-1, -1]]),
        over_queries(kl_of(), [(0, 1), (1, 3)], None, (("value", "key"),)),
        zero=False,  # a model's layers differ
    ),
    "warm": Case(lambda: RelationKL(temperature=2.0), over_queries(kl_of(temperature=2.0), TOP, None, MINILM2)),
    "mean": Case(lambda: RelationKL(heads="mean"), over_queries(kl_of("mean"), TOP, "mean", MINILM2)),
    "causal": Case(RelationKL, over_queries(kl_of(), TOP, None, MINILM2, causal=True), **BACK),
    "causal teacher": Case(
        RelationKL, over_queries(kl_of(), TOP, None, MINILM2, causal=True), teacher=shape(4, causal=True)
    ),
    "grouped": Case(
        lambda: RelationKL(heads=6),
        over_queries(kl_of(6), TOP, 6, MINILM2, own=(4, 4)),
        student=shape(2, 4, groups=2),
        teacher=shape(4, 4, groups=1),
    ),
    **{
        name: Case(make, of(formula, HIDDEN, lambda value: value[0]), teacher=WIDE, between_rows=True)
        for name, (make, formula) in ROWS.items()
    },
    **{
        f"{name}, mean": Case(
            lambda make=make: make("uniform", pooling="mean"),
            of(formula, UNIFORM, lambda value: value.sum(0) / len(value)),
            between_rows=True,
        )
        for name, (make, formula) in ROWS.items()
    },
    **{
        f"{name} of modules": Case(
            lambda make=make: make(modules=[["row", "row"]], pooling="pooled"),
            of(formula, [("module:row", "module:row")], lambda value: value),
            between_rows=True,
        )
        for name, (make, formula) in ROWS.items()
    },
}


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", CASES)
def test_every_loss(name, check):
    check(CASES[name])


def between_rows(loss, student, teacher):
    """The loss of rows that are vectors `[batch, width]`."""
    loss = loss(modules=[["row", "row"]], pooling="pooled")
    loss.bind(shape(), shape())
    said, taught = (Signal(features={"module:row": value}) for value in (student, teacher))
    return loss(said, taught, batch((2,) * len(student)))


@pytest.mark.parametrize("loss", [RKDDistance, RKDAngle, SimilarityPreserving])
@pytest.mark.parametrize("rows", [1, 2, 3])
def test_few_or_identical_rows_have_finite_gradients(loss, rows):
    for value in (0.0, 1.0):
        student = torch.full((rows, 6), value, requires_grad=True)
        cost = between_rows(loss, student, torch.randn(rows, 4))
        cost.backward()
        assert cost.isfinite()
        assert student.grad.isfinite().all()
    twice = torch.randn(rows, 6).repeat(2, 1).requires_grad_()
    between_rows(loss, twice, torch.randn(2 * rows, 4)).backward()
    assert twice.grad.isfinite().all()


@pytest.mark.parametrize("loss", [RKDDistance, RKDAngle, SimilarityPreserving])
def test_a_row_alone_costs_nothing(loss):
    student = torch.randn(1, 6, requires_grad=True)
    cost = between_rows(loss, student, torch.randn(1, 4))
    cost.backward()
    assert cost == 0
    assert (student.grad == 0).all()


def test_distances_and_angles_ignore_scale_and_position():
    vectors = torch.randn(5, 6, dtype=torch.float64)
    for loss in (RKDDistance, RKDAngle):
        assert between_rows(loss, vectors, 3 * vectors + 1) < 1e-12
    assert between_rows(SimilarityPreserving, vectors, 3 * vectors) < 1e-12


def test_by_hand():
    # Three points on a line and a right angle: cosines 1, −1 (at the middle), 1 against √½, 0, √½.
    student = torch.tensor([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0]])
    teacher = torch.tensor([[0.0, 1.0], [0.0, 0.0], [1.0, 0.0]])
    expected = 2 * (1 - sqrt(0.5)) ** 2 / 2 + 0.5
    assert between_rows(RKDAngle, student, teacher).item() == pytest.approx(expected, rel=1e-6)
    means = 4 / 3, (2 + sqrt(2)) / 3
    gaps = [1 / means[0] - 1 / means[1], 1 / means[0] - 1 / means[1], 2 / means[0] - sqrt(2) / means[1]]
    expected = fsum(gap**2 / 2 for gap in gaps)  # each pair counts half for both of its rows
    assert between_rows(RKDDistance, student, teacher).item() == pytest.approx(expected, rel=1e-5)


def test_lines_of_no_length_make_no_angle():
    student = torch.tensor([[0.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
    teacher = torch.tensor([[0.0, 1.0], [0.0, 0.0], [1.0, 0.0]])
    expected = sqrt(0.5) ** 2 / 2 + 0.0 + (1 - sqrt(0.5)) ** 2 / 2  # at the first, the second and the third row
    assert between_rows(RKDAngle, student, teacher).item() == pytest.approx(expected, rel=1e-6)


def test_a_relation_alone_is_its_share_of_the_sum():
    parts = []
    for relations in (["query-query"], ["key-key"], ["value-value"], None):
        loss = RelationKL() if relations is None else RelationKL(relations)
        loss.bind(shape(2), shape(4))
        whole = RelationKL()
        whole.bind(shape(2), shape(4))
        said = signal(rows_of(whole.student_features, shape(2), 1))
        parts.append(loss(said, signal(rows_of(whole.teacher_features, shape(4), 2)), batch()))
        if relations is not None:
            assert loss.student_features == {f"layers.1.{relations[0].split('-')[0]}"}
    torch.testing.assert_close(sum(parts[:3]), parts[3])


def test_the_same_part_on_both_sides_gets_both_gradients():
    loss = RelationKL(["value-value"])
    loss.bind(shape(1), shape(1))
    said, taught = (signal(rows_of(loss.student_features, shape(1), seed)) for seed in (1, 2))
    ours = leaves(said)
    loss(ours, taught, batch()).backward()
    step = np.zeros((4, 2, 5, 3))
    step[1, 0, 2, 1] = 1e-6
    moved = [
        Signal(features={name: value + sign * torch.from_numpy(step) for name, value in said.features.items()})
        for sign in (1, -1)
    ]
    slope = (loss(moved[0], taught, batch()) - loss(moved[1], taught, batch())) / 2e-6
    assert ours.features["layers.0.value"].grad[1, 0, 2, 1].item() == pytest.approx(slope.item(), rel=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: RelationKL(["query-querry"]),
            "relations: unknown relation 'query-querry'; did you mean 'query-query'?",
        ),
        (lambda: RelationKL([]), "relations: none is given; such as query-query, key-key, value-value"),
        (lambda: RelationKL(layers="top"), "layers: unknown layer map 'top'"),
        (lambda: RKDAngle("unifrom"), "layers: unknown layer map 'unifrom'"),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(UserError, match=re.escape(message)):
        make()


def test_models_that_cannot_be_compared_are_refused():
    with pytest.raises(UserError, match="heads: the student has 2 attention heads and the teacher 4"):
        RelationKL().bind(shape(2), shape(2, 4))
    with pytest.raises(UserError, match="tokens of the teacher see only what is before them"):
        RelationKL(["query-key"]).bind(shape(2), shape(2, causal=True))
