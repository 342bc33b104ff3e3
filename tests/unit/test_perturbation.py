"""New inputs without a model: words masked, swapped for others that follow the same word, and pieces cut out."""

from __future__ import annotations

from collections import defaultdict

import pytest

from distillkit.data.files import FileDataset
from distillkit.errors import UserError
from distillkit.generation.inputs import NewInputs
from distillkit.generation.perturbation import LONGEST_PIECE, Perturbation
from distillkit.generation.sampled_inputs import SampledInputs
from tests.tiny import LABELS, classifier, write_jsonl
from tests.unit.test_inputs import TEXTS, Told, ask, masked_model

PLAIN = {"mask": 0.0, "swap": 0.0, "piece": 0.0}


@pytest.fixture
def source(tmp_path) -> FileDataset:
    rows = [{"text": text, "label": LABELS[index % 2]} for index, text in enumerate(TEXTS)]
    return FileDataset(train=str(write_jsonl(tmp_path / "texts.jsonl", rows)), labels=LABELS)


def made(source: FileDataset, parts=((0, None),), seed: int = 0, **settings) -> list[dict]:
    return ask(NewInputs(Perturbation(**{**PLAIN, **settings}), seed=seed), classifier(), source, parts)


def test_words_are_masked_as_often_as_asked(source):
    table, teacher = source.load().split("train"), masked_model("pieces")
    maker = Perturbation(**{**PLAIN, "variants": 1, "mask": 0.3})
    words = []
    for seed in range(200):
        (row,) = maker.open(table, frozenset(), seed, teacher).make([1]) or [{"text": TEXTS[1]}]
        words += zip(row["text"].split(), TEXTS[1].split(), strict=True)
    assert all(word in ("[MASK]", own) for word, own in words)
    assert sum(word == "[MASK]" for word, _ in words) / len(words) == pytest.approx(0.3, abs=0.05)


def test_words_are_left_out_where_the_teacher_knows_no_mask(source):
    for row in made(source, variants=20, mask=0.3):
        rest = iter(TEXTS[row["source_row"]].split())
        assert all(word in rest for word in row["text"].split())


def test_words_are_swapped_for_ones_that_follow_the_same_word(tmp_path):
    texts = ["the red house", "the blue house", "a red car"]
    file = write_jsonl(tmp_path / "t.jsonl", [{"text": text, "label": "good"} for text in texts])
    found = made(FileDataset(train=str(file), labels=LABELS), variants=60, swap=0.5)
    followers = defaultdict(set)
    for text in texts:
        words = text.split()
        for before, word in zip([None, *words], words, strict=False):
            followers[before].add(word)
    for row in found:
        own, words = texts[row["source_row"]].split(), row["text"].split()
        for before, was, word in zip([None, *own], own, words, strict=False):
            assert word == was or word in followers[before]
    assert {row["text"] for row in found if row["source_row"] == 0} >= {"the blue house", "a red house", "the red car"}


def test_pieces_are_words_in_a_row(source):
    found = made(source, variants=50, piece=1.0)
    for row in found:
        assert row["text"] in TEXTS[row["source_row"]]
        assert 1 <= len(row["text"].split()) <= LONGEST_PIECE
    lengths = {len(row["text"].split()) for row in found if row["source_row"] == 1}
    assert lengths == set(range(1, LONGEST_PIECE + 1))


def test_what_a_row_becomes_depends_on_the_row_alone(source):
    usual = {"mask": 0.1, "swap": 0.1, "piece": 0.25}
    whole = made(source, **usual)
    assert [row["text"] for row in made(source, ((0, 1), (1, 3), (3, None)), **usual)] == [row["text"] for row in whole]
    assert [row["text"] for row in made(source, seed=1, **usual)] != [row["text"] for row in whole]
    for index, text in enumerate(TEXTS):
        variants = [row["text"] for row in whole if row["source_row"] == index]
        assert len(set(variants)) == len(variants) <= 10
        assert text not in variants
    assert all(len(row["teacher_logits"]) == len(LABELS) for row in whole)


def test_both_texts_of_a_pair_are_changed(tmp_path):
    rows = [{"text": "a fine and happy day", "text_pair": "so very good again", "label": "good"}]
    columns = {name: name for name in ("text", "text_pair", "label")}
    file = write_jsonl(tmp_path / "p.jsonl", rows)
    found = made(FileDataset(train=str(file), columns=columns, labels=LABELS), mask=0.5)
    assert any(row["text"] != rows[0]["text"] and row["text_pair"] != rows[0]["text_pair"] for row in found)


def test_originals_keep_their_labels_and_are_enough_to_train_on(tmp_path, source):
    teacher = classifier()
    generator = NewInputs(Perturbation(variants=3, mask=0.3), originals=True)
    found = ask(generator, teacher, source, ((0, 2), (2, None)))
    assert [row["text"] for row in found if row["label"] is not None] == TEXTS
    assert [row["label"] for row in found if row["label"] is not None] == [LABELS[i % 2] for i in range(len(TEXTS))]
    assert all(len(row["teacher_logits"]) == len(LABELS) for row in found)
    labelled = ask(NewInputs(Perturbation(variants=3, mask=0.3), originals=True, hard_labels=True), teacher, source)
    kept = [row["label"] for row in labelled if row["text"] in TEXTS]
    assert kept == [LABELS[i % 2] for i in range(len(TEXTS))]
    assert all(row["label"] in LABELS for row in labelled)
    without = ask(NewInputs(Perturbation(variants=3, mask=0.3)), teacher, source)
    assert [row["text"] for row in found if row["label"] is None] == [row["text"] for row in without]


def test_made_up_texts_have_no_originals():
    with pytest.raises(UserError, match=r"^generate\.originals: its inputs are not made of rows"):
        NewInputs(SampledInputs(Told(False, [])), originals=True)


@pytest.mark.parametrize(
    ("settings", "where"),
    [({"mask": 1.5}, "mask"), ({"swap": -0.1}, "swap"), ({"mask": 0.6, "swap": 0.6}, "swap"), (PLAIN, "mask")],
)
def test_settings_that_cannot_work_are_refused(settings, where):
    with pytest.raises(UserError, match=rf"^{where}: "):
        Perturbation(**settings)
