"""Expected calibration error by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest

from distillkit.evaluation.calibration import BINS, Calibration, calibration


def test_error_by_hand():
    """Two bins: (14/15, 1] holds 0.95 right, 0.99 wrong; (8/15, 9/15] holds 0.55 right."""
    probabilities = np.array([[0.95, 0.05], [0.99, 0.01], [0.45, 0.55]])
    found = calibration(probabilities, np.array([0, 1, 1]))
    assert found.counts[14] == 2
    assert found.counts[8] == 1
    expected = 2 / 3 * abs(1 / 2 - 0.97) + 1 / 3 * abs(1 - 0.55)
    assert found.error == pytest.approx(expected)


def test_error_against_a_plain_loop():
    random = np.random.default_rng(0)
    probabilities = random.dirichlet([0.5, 0.5, 0.5], size=500)
    labels = random.integers(3, size=500)
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    expected = 0.0
    for index in range(BINS):
        inside = (confidence > index / BINS) & (confidence <= (index + 1) / BINS)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert calibration(probabilities, labels).error == pytest.approx(expected)


def test_one_who_is_as_sure_as_right_has_no_error():
    found = Calibration()
    found.add(np.full(4, 0.75), np.array([1.0, 1.0, 1.0, 0.0]))
    assert found.error == 0


def test_the_edges_of_the_bins_are_closed_above():
    found = Calibration()
    found.add(np.array([1 / BINS, 2 / BINS, 1.0, 0.0]), np.zeros(4))
    assert (found.counts[0], found.counts[1], found.counts[-1]) == (2, 1, 1)


def test_items_without_a_label_do_not_count():
    found = calibration(np.array([[0.9, 0.1], [0.9, 0.1]]), np.array([0, -100]))
    assert found.counts.sum() == 1


def test_json_has_empty_bins_and_no_numpy():
    values = calibration(np.array([[0.9, 0.1]]), np.array([0])).to_dict()
    assert json.loads(json.dumps(values)) == values
    assert values["accuracy"].count(None) == BINS - 1
    assert np.isnan(Calibration().error)
