"""Each metric against the library, or the script, that defines it, on the same predictions."""

from __future__ import annotations

import re
import string
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats
from seqeval import metrics as seqeval
from sklearn import metrics as sklearn

from distillkit.metrics.classification import CLASSIFICATION, MULTI_LABEL, classification_metrics
from distillkit.metrics.reading import best_of, best_threshold, exact_match, normalise, reading_metrics, word_f1
from distillkit.metrics.regression import REGRESSION, regression_metrics
from distillkit.metrics.tagging import entity_counts, not_entities, tagging_metrics

RANDOM = np.random.default_rng(0)
LABELS, PREDICTIONS = RANDOM.integers(0, 4, 200), RANDOM.integers(0, 4, 200)


def averaged(score, average):
    return lambda true, predicted: score(true, predicted, average=average, zero_division=0)


CASES = {
    "accuracy": sklearn.accuracy_score,
    "matthews": sklearn.matthews_corrcoef,
    "weighted_f1": averaged(sklearn.f1_score, "weighted"),
    **{
        f"{average}_{name}": averaged(score, average)
        for average in ("micro", "macro")
        for name, score in (
            ("f1", sklearn.f1_score),
            ("precision", sklearn.precision_score),
            ("recall", sklearn.recall_score),
        )
    },
}


@pytest.mark.parametrize("name", CASES)
def test_metrics_of_classes_are_those_of_scikit_learn(name):
    found = classification_metrics(LABELS.tolist(), PREDICTIONS.tolist(), [name])
    assert found == {name: pytest.approx(CASES[name](LABELS, PREDICTIONS))}


@pytest.mark.parametrize("positive", [0, 1])
def test_metrics_of_one_class(positive):
    labels, predictions = LABELS % 2, PREDICTIONS % 2
    found = classification_metrics(labels, predictions, ["f1", "precision", "recall"], positive)
    for name, score in (
        ("f1", sklearn.f1_score),
        ("precision", sklearn.precision_score),
        ("recall", sklearn.recall_score),
    ):
        assert found[name] == pytest.approx(score(labels, predictions, pos_label=positive))


def test_every_metric_of_classes_was_tried():
    assert set(CASES) | {"f1", "precision", "recall"} == set(CLASSIFICATION)
    assert set(MULTI_LABEL) == set(CASES) - {"matthews"}


@pytest.mark.parametrize("name", MULTI_LABEL)
def test_metrics_of_several_labels_are_those_of_scikit_learn(name):
    labels, predictions = RANDOM.integers(0, 2, (50, 5)), RANDOM.integers(0, 2, (50, 5))
    labels[:3] = predictions[:3]
    found = classification_metrics(labels.tolist(), predictions.tolist(), [name])
    assert found[name] == pytest.approx(CASES[name](labels, predictions))


def test_metrics_of_scores_are_those_of_scipy():
    scores = np.round(RANDOM.normal(size=60), 1)  # with ties
    predictions = scores + RANDOM.normal(size=60)
    found = regression_metrics(scores.tolist(), predictions.tolist(), list(REGRESSION))
    assert found == {
        "pearson": pytest.approx(stats.pearsonr(scores, predictions)[0]),
        "spearman": pytest.approx(stats.spearmanr(scores, predictions)[0]),
        "mse": pytest.approx(sklearn.mean_squared_error(scores, predictions)),
        "mae": pytest.approx(sklearn.mean_absolute_error(scores, predictions)),
        "r2": pytest.approx(sklearn.r2_score(scores, predictions)),
    }


@pytest.mark.parametrize(("scores", "predictions"), [([1, 2], [3, 3]), ([2, 2], [1, 3]), ([1], [1])])
def test_a_correlation_with_a_constant_is_zero(scores, predictions):
    found = regression_metrics(scores, predictions)
    assert found["pearson"] == found["spearman"] == 0


TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "S-LOC", "E-PER"]


def sentences(seed: int) -> list[list[str]]:
    random = np.random.default_rng(seed)
    return [[str(tag) for tag in random.choice(TAGS, random.integers(1, 12))] for _ in range(80)]


def test_metrics_of_tags_are_those_of_seqeval():
    tags = sentences(0)
    other = sentences(1)
    predictions = [[*b[: len(a) // 2], *a[len(b[: len(a) // 2]) :]] for a, b in zip(tags, other, strict=True)]
    found = tagging_metrics(
        [entity_counts(*pair) for pair in zip(tags, predictions, strict=True)],
        [sum(a == b for a, b in zip(*pair, strict=True)) for pair in zip(tags, predictions, strict=True)],
        [len(row) for row in tags],
    )
    assert 0.1 < found["f1"] < 0.9
    assert found == {
        "f1": pytest.approx(seqeval.f1_score(tags, predictions)),
        "precision": pytest.approx(seqeval.precision_score(tags, predictions)),
        "recall": pytest.approx(seqeval.recall_score(tags, predictions)),
        "accuracy": pytest.approx(seqeval.accuracy_score(tags, predictions)),
    }


def test_tags_without_any_entity():
    assert tagging_metrics([(0, 0, 0)], [1], [2]) == {"f1": 0, "precision": 0, "recall": 0, "accuracy": 0.5}
    assert not_entities(["O", "B-x", "I-x", "NOUN", "o"]) == ["NOUN", "o"]


def official(answer: str, prediction: str) -> tuple[bool, Fraction]:
    """SQuAD 2.0's rules for one answer, in words: lower case; no punctuation; no a, an, the; words as a bag."""
    bags = []
    for text in (answer, prediction):
        kept = "".join(letter for letter in text.lower() if letter not in set(string.punctuation))
        bags.append(re.sub(r"\b(?:a|an|the)\b", " ", kept, flags=re.UNICODE).split())
    true, found = bags
    shared = sum(min(Counter(true)[word], Counter(found)[word]) for word in set(true))
    if not true or not found:
        return true == found, Fraction(true == found)
    if not shared:
        return False, Fraction(0)
    precision, recall = Fraction(shared, len(found)), Fraction(shared, len(true))
    return true == found, 2 * precision * recall / (precision + recall)


WORDS = ["The", "a", "an", "cat's", "cat", "U.S.", "US", "dog,", "dog", "theory", "3.5", "35", "—", "$", "Ärger"]


def test_exact_match_and_f1_are_those_of_the_official_script():
    for seed in range(300):
        random = np.random.default_rng(seed)
        answer, prediction = (" ".join(random.choice(WORDS, random.integers(0, 5))) for _ in range(2))
        same, f1 = official(answer, prediction)
        assert exact_match(answer, prediction) == same
        assert word_f1(answer, prediction) == pytest.approx(float(f1))


@pytest.mark.parametrize(
    ("answers", "prediction", "exact", "f1"),
    [
        (["the Cat"], "cat!", 1, 1),
        (["in 1895", "1895"], "1895", 1, 1),
        (["a red dog"], "red dog house", 0, 0.8),
        (["dog dog"], "dog", 0, 2 / 3),
        ([], "", 1, 1),
        ([], "a dog", 0, 0),
        (["dog"], "", 0, 0),
        (["the", "dog"], "a", 0, 0),  # an answer of nothing but an article is none
        (["the"], "", 1, 1),
        (["théâtre"], "theatre", 0, 0),
        (["twenty-one"], "twentyone", 1, 1),
    ],
)
def test_the_best_of_several_answers(answers, prediction, exact, f1):
    assert best_of(answers, prediction) == (exact, pytest.approx(f1))


def test_normalised_text():
    assert normalise("  An Apple, a\tday -- THE  end.") == "apple day end"
    assert normalise("them anthem a") == "them anthem"


def test_reading_metrics_are_means():
    assert reading_metrics([1, 0, 0], [1, 0.5, 0]) == {"f1": 0.5, "exact": pytest.approx(1 / 3)}
    assert np.isnan(reading_metrics([], [])["f1"])


def test_the_best_threshold_is_the_best_of_all():
    for seed in range(50):
        random = np.random.default_rng(seed)
        count = int(random.integers(1, 12))
        f1, answerable = random.random(count), random.random(count) < 0.6
        margins = random.integers(-3, 4, count).astype(float)  # with ties

        def judged(threshold, f1=f1, margins=margins, answerable=answerable):
            return np.where(margins > threshold, ~answerable, f1 * answerable).mean()

        best, threshold = best_threshold(f1.tolist(), margins.tolist(), answerable.tolist())
        assert judged(threshold) == pytest.approx(best)
        assert best == pytest.approx(max(judged(candidate) for candidate in [*margins, -9, 9]))
