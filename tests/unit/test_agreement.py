"""Equal predictions, correlation and divergence of two models, against float64 and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import special, stats

from distillkit.data.encode import Encoded
from distillkit.evaluation import vocabulary
from distillkit.evaluation.agreement import agreement, continuous, correlation, divergence, item_probabilities
from distillkit.evaluation.evaluate import evaluate
from distillkit.evaluation.vocabulary import spreads
from distillkit.models.live import LiveModel
from distillkit.signals import DenseLogits, Signal
from tests.tiny import accelerator, encoded, language_model


def logits(live: LiveModel, data: Encoded) -> tuple[np.ndarray, np.ndarray]:
    """Logits `[items, vocab]` in float64, and labels, row by row without any padding."""
    rows, labels = [], []
    for ids in data.rows["input_ids"]:
        with torch.no_grad():
            rows.append(live.model.double()(input_ids=torch.tensor([ids])).logits[0, :-1].numpy())
        labels += ids[1:]
    live.model.float()
    return np.concatenate(rows), np.array(labels)


def test_agreement_is_the_share_of_equal_predictions(tmp_path):
    one, other = (language_model(seed=seed).eval() for seed in (0, 1))
    data = encoded(tmp_path, one.task)
    first, second = (evaluate(model, one.task, data, 8, accelerator()).answers for model in (one, other))
    flat = [np.concatenate(answers["prediction"]) for answers in (first, second)]
    assert agreement(first, second) == pytest.approx((flat[0] == flat[1]).mean())
    assert agreement(first, first) == 1.0


def test_predictions_of_every_kind_agree_or_not():
    assert agreement({"prediction": [1, 2, 0]}, {"prediction": [1, 2, 2]}) == pytest.approx(2 / 3)
    assert agreement({"prediction": ["a", "b c"]}, {"prediction": ["a", "b"]}) == 0.5
    assert agreement({"prediction": [["O", "B-x"], ["O"]]}, {"prediction": [["O", "O"], ["O"]]}) == pytest.approx(2 / 3)
    assert agreement({"prediction": [[1, 2, 3]]}, {"prediction": [[1, 2]]}) == pytest.approx(2 / 3)


def test_real_numbers_correlate():
    one, other = {"prediction": [0.5, 1.5, 2.0, 4.0]}, {"prediction": [0.4, 1.9, 1.8, 3.0]}
    assert continuous(one)
    assert not continuous({"prediction": [1, 2]})
    assert correlation(one, other) == pytest.approx(stats.pearsonr(one["prediction"], other["prediction"]).statistic)
    assert np.isnan(correlation(one, {"prediction": [1.0] * 4}))


def test_only_probabilities_that_sum_to_one_are_a_distribution():
    assert item_probabilities({"probabilities": [np.array([0.25, 0.75]), np.array([1.0, 0.0])]}).shape == (2, 2)
    assert item_probabilities({"probabilities": [np.array([0.9, 0.8]), np.array([0.5, 0.5])]}) is None
    assert item_probabilities({"prediction": [1]}) is None
    assert item_probabilities({"probabilities": []}) is None


def test_divergence_is_that_of_scipy_and_zero_for_equals():
    random = np.random.default_rng(0)
    student, teacher = (special.softmax(random.normal(size=(30, 5)) * 3, axis=1) for _ in range(2))
    teacher[0] = [0, 0, 1, 0, 0]
    expected = special.rel_entr(teacher, student).sum(axis=1).mean()
    assert divergence(student, teacher) == pytest.approx(expected, rel=1e-12)
    assert divergence(teacher, teacher) == pytest.approx(0, abs=1e-12)
    assert np.isfinite(divergence(np.array([[1.0, 0.0]]), np.array([[0.5, 0.5]])))


def test_divergence_over_a_vocabulary_is_exact_whatever_the_chunks(tmp_path, monkeypatch):
    teacher, student = (language_model(seed=seed).eval() for seed in (0, 1))
    for model in (teacher, student):
        model.model.lm_head.weight.data *= 20  # peaked distributions
    data = encoded(tmp_path, teacher.task)
    found = []
    for budget in (1 << 24, 320 * 7):
        monkeypatch.setattr(vocabulary, "chunks", lambda n, c, b=budget: limited(n, c, b))
        found.append(spreads({"t": teacher, "s": student}, data, 8, accelerator()))
    (p, labels), (q, _) = (logits(model, data) for model in (teacher, student))
    expected = special.rel_entr(special.softmax(p, axis=1), special.softmax(q, axis=1)).sum(axis=1)
    for spread in found:
        assert spread["s"].items == len(labels)
        assert spread["s"].divergence == pytest.approx(expected.sum(), rel=1e-5)
        assert spread["t"].divergence == 0
        likely = special.softmax(q, axis=1).max(axis=1)
        calibration = spread["s"].calibration
        assert calibration.counts.sum() == len(labels)
        assert calibration.confidences.sum() == pytest.approx(likely.sum(), rel=1e-5)
        assert calibration.hits.sum() == (q.argmax(axis=1) == labels).sum()


def limited(items: int, classes: int, budget: int):
    size = max(1, budget // classes)
    return [(start, min(start + size, items)) for start in range(0, items, size)]


def test_a_padded_vocabulary_does_not_diverge(tmp_path):
    """The student has more columns; over those that both have, the models are the same."""
    teacher = language_model().eval()
    data = encoded(tmp_path, teacher.task)

    def padded(batch):
        own = teacher(batch).logits
        values = own.rows(0, len(own))
        return Signal(DenseLogits(torch.cat([values, torch.full((len(values), 64), 9.0)], dim=1)))

    assert spreads({"t": teacher, "s": padded}, data, 8, accelerator())["s"].divergence == pytest.approx(0, abs=1e-4)


def test_processes_add_up_their_shares(tmp_path, monkeypatch):
    models = {"t": language_model().eval(), "s": language_model(seed=1).eval()}
    data = encoded(tmp_path, models["t"].task)
    whole = spreads(models, data, 8, accelerator())
    shares: list = []
    monkeypatch.setattr(vocabulary, "gather_object", lambda share: shares.extend(share) or list(shares))

    class Alone:
        num_processes, device = 2, torch.device("cpu")

        def __init__(self, rank):
            self.process_index = rank

    for rank in (0, 1):
        joined = spreads(models, data, 8, Alone(rank))
    for name, spread in whole.items():
        assert joined[name].items == spread.items
        assert joined[name].divergence == pytest.approx(spread.divergence)
        assert (joined[name].calibration.counts == spread.calibration.counts).all()
