"""Filters that compare rows with other rows: duplicates, near duplicates, evaluation splits."""

from __future__ import annotations

import random
from itertools import pairwise

import numpy as np
import pytest
from datasets import Dataset

from distillkit.build import build
from distillkit.data.files import FileDataset
from distillkit.data.rows import Rows
from distillkit.errors import UserError
from distillkit.generation.filters.base import Filter, Given
from distillkit.generation.filters.duplicates import Duplicates
from distillkit.generation.filters.evaluation_overlap import EvaluationOverlap
from distillkit.generation.filters.minhash import MinHash, bands
from distillkit.generation.filters.near_duplicates import NearDuplicates
from distillkit.generation.filters.seen import Seen
from distillkit.generation.filters.words import hashes, runs, words
from tests.tiny import write_jsonl

NOTHING = Given(Rows("data", {}))
VOCABULARY = [f"word{index}" for index in range(500)]


def kept(one: Filter, rows: list[dict], size: int | None = None, given: Given = NOTHING) -> list[dict]:
    """Pass rows through in calls of some size."""
    one.begin(given)
    size = size or len(rows)
    found = []
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        found += [row for row, reason in zip(part, one.judge(part), strict=True) if reason is None]
    return found


def texts(*given: str) -> list[dict]:
    return [{"text": text} for text in given]


def altered(source: random.Random, parts: list[str], changes: int) -> list[str]:
    parts = list(parts)
    for place in source.sample(range(len(parts)), changes):
        parts[place] = source.choice(VOCABULARY)
    return parts


def families(seed: int, count: int, length: int = 60) -> list[dict]:
    """Texts, each with a few that differ in 0 to 30 words, shuffled."""
    source = random.Random(seed)
    made = []
    for _ in range(count):
        base = [source.choice(VOCABULARY) for _ in range(length)]
        made += [" ".join(altered(source, base, changes)) for changes in (0, 1, 2, 4, 30)]
    source.shuffle(made)
    return texts(*made)


def as_set(text: str, ngram: int = 3) -> frozenset[str]:
    return frozenset(runs(words(text, signs=True), ngram))


def jaccard(first: frozenset[str], second: frozenset[str]) -> float:
    return len(first & second) / len(first | second)


def test_hashes_are_remembered_with_all_their_rows():
    source, seen, truth = np.random.default_rng(0), Seen(), {}
    for _ in range(40):
        keys = source.integers(0, 2000, source.integers(0, 200), dtype=np.uint64)
        rows = source.integers(0, 1 << 32, len(keys), dtype=np.uint32)
        seen.add(keys, rows)
        for key, row in zip(keys.tolist(), rows.tolist(), strict=True):
            truth.setdefault(key, set()).add(row)
        assert all(len(longer[0]) >= 2 * len(shorter[0]) for longer, shorter in pairwise(seen.runs))
    asked = np.arange(2500, dtype=np.uint64)
    assert seen.contains(asked).tolist() == [key in truth for key in asked.tolist()]
    assert seen.contains(asked[:6].reshape(2, 3)).shape == (2, 3)
    for key in range(0, 2500, 50):
        asked = np.arange(key, key + 3, dtype=np.uint64)
        assert seen.rows(asked).tolist() == sorted(set().union(*(truth.get(k, set()) for k in asked.tolist())))
    assert len(Seen().rows(asked)) == 0
    assert not Seen().contains(asked).any()


def test_the_first_of_equal_rows_is_kept():
    rows = texts("a b", "A  b\n", "a b.", "ab", "a b")
    assert kept(Duplicates(), rows) == texts("a b", "a b.", "ab")
    assert kept(Duplicates(), texts("2 + 2", "2 * 2", "2 - 2")) == texts("2 + 2", "2 * 2", "2 - 2")


@pytest.mark.parametrize("one", [Duplicates(), NearDuplicates()])
def test_pairs_are_compared_whole_and_rows_without_text_not_at_all(one):
    rows = [{"text": "a b c", "text_pair": pair, "label": 0} for pair in ("d e f", "g h i", "d e f")]
    assert kept(one, rows) == rows[:2]
    images = [{"image": {"bytes": b"x", "path": None}, "label": 0}] * 3
    assert kept(one, images) == images


def test_what_is_compared_is_chosen():
    rows = [{"prompt": p, "completion": c} for p, c in (("a", "x"), ("a", "y"), ("b", "x"), ("a", "x"))]
    assert kept(Duplicates(), rows) == rows[:3]
    assert kept(Duplicates(of="answer"), rows) == rows[:2]
    assert kept(Duplicates(of="prompt"), rows) == [rows[0], rows[2]]
    assert kept(NearDuplicates(of="prompt"), rows) == [rows[0], rows[2]]


@pytest.mark.parametrize("one", [Duplicates(), NearDuplicates()])
def test_duplicates_do_not_depend_on_how_rows_are_cut_and_a_pass_forgets_the_last_one(one):
    rows = families(0, 20)
    rows += rows[:30]
    whole = kept(one, rows)
    assert len(whole) < len(rows)
    assert [kept(one, rows, size) for size in (1, 7, 50)] == [whole] * 3
    assert len(kept(one, rows * 2, 30)) == len(whole)


@pytest.mark.parametrize("seed", range(3))
def test_estimated_similarity_is_that_of_the_sets(seed):
    """Within four standard errors of each pair, and without bias over all of them."""
    source, minhash, errors = random.Random(seed), MinHash(0.8), []
    for changes in (0, 1, 2, 4, 8, 16, 30):
        for _ in range(20):
            first = [source.choice(VOCABULARY) for _ in range(60)]
            second = altered(source, first, changes)
            minima = [minhash.minima(hashes(runs(text, 3))) for text in (first, second)]
            short = [minhash.short(each) for each in minima]
            true = jaccard(as_set(" ".join(first)), as_set(" ".join(second)))
            estimate = minhash.similarity(short[0], short[1][None])[0]
            assert abs(estimate - true) <= 4 * np.sqrt(true * (1 - true) / 128) + 4 / 16 / np.sqrt(128)
            errors.append(estimate - true)
    assert abs(np.mean(errors)) < 0.012  # four standard errors of the mean


def test_bands_find_pairs_at_the_threshold_and_few_that_are_far_below():
    for threshold in (0.5, 0.7, 0.8, 0.9, 1.0):
        count, width = bands(threshold, 128)
        assert count * width <= 128
        assert 1 - (1 - threshold**width) ** count >= 0.99
    count, width = bands(0.8, 128)
    assert 1 - (1 - 0.3**width) ** count < 0.02
    assert bands(0.01, 4) == (4, 1)


def test_near_duplicates_are_those_that_are_alike_by_their_sets():
    rows = families(1, 60)
    left = kept(NearDuplicates(), rows)
    found = {id(row) for row in left}
    clear = 0.12  # three standard errors at 0.8
    before: list[frozenset[str]] = []
    for row in rows:
        own = as_set(row["text"])
        best = max((jaccard(own, other) for other in before), default=0.0)
        if id(row) in found:
            assert best < 0.8 + clear
            before.append(own)
        else:
            assert best > 0.8 - clear
    assert 100 < len(left) < 250


def test_short_and_empty_rows_are_near_duplicates_only_of_their_like():
    rows = texts("Yes.", "No.", "yes.", "", "", "2 + 2", "2 * 2")
    assert kept(NearDuplicates(), rows) == texts("Yes.", "No.", "", "", "2 + 2", "2 * 2")


def test_rows_that_share_a_template_are_told_apart():
    source = random.Random(0)
    rows = texts(*(f"Translate this to German: {' '.join(source.sample(VOCABULARY, 12))}" for _ in range(300)))
    assert kept(NearDuplicates(), rows) == rows


QUESTION = "A farmer has twelve hens and each of them lays three eggs on every day of the week but Sunday"
SHORT = "What is the capital of Peru?"


@pytest.fixture
def evaluated() -> Given:
    table = {"prompt": [QUESTION, SHORT], "completion": ["216 eggs", "Lima is the capital of Peru"]}
    splits = {"train": Dataset.from_dict(table), "test": Dataset.from_dict(table)}
    return Given(Rows("data", splits))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": f"Please solve: {QUESTION}!", "completion": "x"}, "its prompt holds 'a farmer has twelve"),
        ({"prompt": "x", "completion": f"So, {QUESTION.upper()}."}, "its answer holds 'a farmer has twelve"),
        ({"prompt": QUESTION[:40], "completion": "x"}, None),
        (
            {"prompt": "what is the capital of peru", "completion": "x"},
            "its prompt holds 'what is the capital of peru'",
        ),
        ({"prompt": f"{SHORT} And of Chile?", "completion": "x"}, None),
        ({"prompt": "x", "completion": "216 eggs."}, None),
        ({"prompt": "x", "completion": "Lima is the capital of Peru, and so on"}, None),
        ({"prompt": "x", "completion": "Lima: is the capital of Peru"}, "its answer holds 'lima is"),
        ({"text": ""}, None),
    ],
)
def test_rows_that_hold_an_evaluation_text_are_rejected(evaluated, row, reason):
    one = EvaluationOverlap()
    one.begin(evaluated)
    (found,) = one.judge([row])
    assert (found is None) if reason is None else found.startswith(reason)


def test_boilerplate_of_many_evaluation_rows_does_not_count():
    template = "Below is an instruction that describes a task . Write a response that completes it well : "
    rows = [f"{template} {' '.join(VOCABULARY[i * 20 : i * 20 + 14])}" for i in range(12)]
    given = Given(Rows("data", {"validation": Dataset.from_dict({"text": rows})}))
    row = {"prompt": f"{template} something else", "completion": "x"}
    assert kept(EvaluationOverlap(), [row], given=given) == [row]
    assert kept(EvaluationOverlap(max_rows=12), [row], given=given) == []
    assert kept(EvaluationOverlap(), texts(rows[3]), given=given) == []


def test_conversations_and_other_datasets_are_compared_with(tmp_path):
    turns = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": None}]
    given = Given(Rows("data", {"test": Dataset.from_dict({"messages": [turns]})}))
    row = {"prompt": QUESTION, "completion": "x"}
    assert kept(EvaluationOverlap(), [row], given=given) == []
    path = write_jsonl(tmp_path / "benchmark.jsonl", [{"text": QUESTION}])
    other = FileDataset(train=str(path), columns={"text": "text"})
    assert kept(EvaluationOverlap(sets={"benchmark": other}), [row]) == []
    assert kept(EvaluationOverlap(sets={"benchmark": other}, ngram=30), [row | {"prompt": f"{QUESTION} x"}]) != []


def test_evaluation_rows_without_text_have_nothing_in_common_with_any():
    given = Given(Rows("data", {"test": Dataset.from_dict({"tokens": [["a", "b"]]})}))
    assert kept(EvaluationOverlap(), texts("a b c d e f"), given=given) == texts("a b c d e f")


def test_nothing_to_compare_with_is_refused():
    given = Given(Rows("data", {"train": Dataset.from_dict({"text": ["a"]})}))
    with pytest.raises(UserError, match="there is no validation or test split to compare with"):
        EvaluationOverlap().check(given)


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (
            {"_target_": "duplicates.Duplicates", "of": "line"},
            ".of: expected 'row' or 'answer' or 'prompt', got 'line'",
        ),
        ({"_target_": "near_duplicates.NearDuplicates", "threshold": 0.0}, "threshold: must be above 0 and at most 1"),
        ({"_target_": "near_duplicates.NearDuplicates", "ngram": 0}, "ngram, permutations: must be at least 1, got 0"),
        (
            {"_target_": "evaluation_overlap.EvaluationOverlap", "ngram": 0},
            "ngram, min_words, max_rows: must be at least 1",
        ),
    ],
)
def test_settings_that_cannot_work_are_refused_in_one_line(node, message):
    node = node | {"_target_": f"distillkit.generation.filters.{node['_target_']}"}
    with pytest.raises(UserError, match=r"^generate\.filters\.one") as error:
        build(node, "generate.filters.one")
    assert message in str(error.value)
