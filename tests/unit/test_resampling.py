"""Intervals and p-values against scipy and by hand; draws that depend on the seed alone; bounded time."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from distillkit.errors import UserError
from distillkit.evaluation.resampling import p_value, resample
from distillkit.tasks.base import Answers


def accuracy(answers: Answers) -> dict[str, float]:
    return {"accuracy": float(np.mean(answers["hit"]))}


def hits(share: float, rows: int, seed: int) -> Answers:
    return {"hit": (np.random.default_rng(seed).random(rows) < share).astype(float).tolist()}


def drawn(answers: dict[str, Answers], count: int = 4000, seconds: float = 60.0, seed: int = 0):
    return resample(answers, accuracy, ("hit",), count, seconds, seed)


def test_the_interval_is_that_of_scipys_percentile_bootstrap():
    answers = hits(0.8, 150, 1)
    low, high = drawn({"a": answers}).interval("a", "accuracy")
    expected = stats.bootstrap(
        (np.array(answers["hit"]),), np.mean, method="percentile", n_resamples=20_000, rng=np.random.default_rng(0)
    ).confidence_interval
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=0.008)


def test_the_p_value_is_about_that_of_a_paired_permutation_test():
    better, worse = hits(0.75, 200, 1), hits(0.66, 200, 2)
    found = drawn({"a": better, "b": worse}).difference("a", "b", "accuracy")
    pairs = (np.array(better["hit"]), np.array(worse["hit"]))
    expected = stats.permutation_test(
        pairs, lambda a, b: np.mean(a - b), permutation_type="samples", n_resamples=20_000, rng=np.random.default_rng(0)
    )
    assert found.value == pytest.approx(expected.statistic)
    assert 0.01 < expected.pvalue < 0.3
    assert found.p == pytest.approx(expected.pvalue, abs=0.03)
    assert found.low < found.value < found.high


def test_pairing_finds_what_two_separate_intervals_do_not():
    """The second model is right wherever the first one is, and on eight more rows of 200."""
    first = hits(0.6, 200, 3)["hit"]
    wrong = [row for row, hit in enumerate(first) if hit == 0][:8]
    second = [1.0 if row in wrong else hit for row, hit in enumerate(first)]
    found = drawn({"a": {"hit": second}, "b": {"hit": first}})
    assert found.interval("a", "accuracy")[0] < found.interval("b", "accuracy")[1]
    assert found.difference("a", "b", "accuracy").p < 0.01


def test_p_values_by_hand():
    assert p_value(np.array([1.0] * 97 + [0.0] + [-1.0] * 2)) == pytest.approx(2 * (1 + 3) / 101)
    assert p_value(np.array([1.0] * 999)) == pytest.approx(2 / 1000)
    assert p_value(np.zeros(50)) == 1.0
    assert p_value(np.array([np.nan, 1.0, np.nan, 1.0])) == pytest.approx(2 / 3)


def test_equal_models_do_not_differ():
    answers = hits(0.7, 60, 4)
    found = drawn({"a": answers, "b": dict(answers)}, 200).difference("a", "b", "accuracy")
    assert (found.value, found.low, found.high, found.p) == (0, 0, 0, 1)


def test_all_models_see_the_same_draws_and_the_seed_decides_them():
    answers = {"a": hits(0.7, 50, 1), "b": hits(0.7, 50, 1), "c": hits(0.5, 50, 9)}
    one, same, other = (drawn(answers, 30, seed=seed).values for seed in (5, 5, 6))
    assert (one["a"]["accuracy"] == one["b"]["accuracy"]).all()
    assert all((one[name]["accuracy"] == same[name]["accuracy"]).all() for name in answers)
    assert (one["a"]["accuracy"] != other["a"]["accuracy"]).any()


def test_time_ends_the_resampling_and_too_few_resamples_say_nothing():
    answers = {"a": hits(0.7, 50, 1), "b": hits(0.5, 50, 2)}
    found = drawn(answers, 1000, seconds=0.0)
    assert found.count == 0
    assert found.interval("a", "accuracy") is None
    assert found.difference("a", "b", "accuracy") is None
    assert found.whole["a"]["accuracy"] == pytest.approx(np.mean(answers["a"]["hit"]))
    more, fewer = (drawn(answers, count).values["a"]["accuracy"] for count in (40, 10))
    assert (more[:10] == fewer).all()


def test_resamples_without_a_value_are_left_out():
    def correlation(answers: Answers) -> dict[str, float]:
        if len(set(answers["x"])) < 2:
            raise UserError("constant")
        return {"pearson": float(np.corrcoef(answers["x"], answers["y"])[0, 1])}

    found = resample({"a": {"x": [0, 0, 0, 1], "y": [1, 2, 3, 5]}}, correlation, ("x", "y"), 400, 60, 0)
    assert 0 < np.isnan(found.values["a"]["pearson"]).sum() < 300
    assert found.interval("a", "pearson") is not None


def test_models_that_saw_other_rows_are_refused():
    with pytest.raises(ValueError, match="different rows"):
        drawn({"a": hits(0.5, 10, 0), "b": hits(0.5, 11, 0)}, 10)
