"""BLEU, chrF, ROUGE and METEOR against the libraries on the same texts, and from any part of them."""

from __future__ import annotations

import random
from itertools import zip_longest

import nltk.corpus
import pytest
from nltk.translate.meteor_score import meteor_score
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU, CHRF

from distillkit.errors import UserError
from distillkit.metrics import text as text_metrics
from distillkit.metrics.text import ROUGE, TextMetrics
from tests.tiny import BAD, GOOD


@pytest.fixture
def pairs() -> tuple[list[str], list[list[str]]]:
    """Texts that share some words with one to three references; one is empty."""
    source = random.Random(0)
    pool = [sentence + "." for sentence in GOOD + BAD]
    texts = [" ".join(source.choices(pool, k=source.randint(1, 3))) for _ in range(40)] + [""]
    references = [source.choices(pool, k=source.randint(1, 3)) for _ in texts]
    return texts, references


class Nothing:
    """A WordNet without a word in it."""

    def synsets(self, word: str) -> list:
        return []

    def ensure_loaded(self) -> None:
        return


def test_bleu_and_chrf_are_those_of_sacrebleu(pairs):
    texts, references = pairs
    metrics = TextMetrics(["bleu", "chrf"])
    streams = list(zip_longest(*references))
    expected = {"bleu": BLEU().corpus_score(texts, streams).score, "chrf": CHRF().corpus_score(texts, streams).score}
    assert metrics.values(metrics.statistics(texts, references)) == pytest.approx(expected, abs=1e-9)
    assert 5 < expected["bleu"] < 95
    characters = TextMetrics(["bleu"], bleu_tokenizer="char")
    found = characters.values(characters.statistics(texts, references))["bleu"]
    assert found == pytest.approx(BLEU(tokenize="char").corpus_score(texts, streams).score)


def test_rouge_is_that_of_rouge_score(pairs):
    texts, references = pairs
    metrics = TextMetrics(ROUGE)
    found = metrics.values(metrics.statistics(texts, references))
    scorer = RougeScorer(list(ROUGE))
    scores = [scorer.score_multi(own, text) for text, own in zip(texts, references, strict=True)]
    for name in ROUGE:
        assert found[name] == pytest.approx(100 * sum(score[name].fmeasure for score in scores) / len(scores))


def test_meteor_is_that_of_nltk(pairs, monkeypatch):
    texts, references = pairs
    nothing = Nothing()
    monkeypatch.setattr(nltk.corpus, "wordnet", nothing)
    monkeypatch.setattr(meteor_score, "__defaults__", (*meteor_score.__defaults__[:2], nothing, 0.9, 3.0, 0.5))
    metrics = TextMetrics(["meteor"])
    found = metrics.values(metrics.statistics(texts, references))["meteor"]
    split = [text.replace(".", " . ").split() for text in texts]
    expected = [
        meteor_score([own.replace(".", " . ").split() for own in several], words)
        for several, words in zip(references, split, strict=True)
    ]
    assert found == pytest.approx(100 * sum(expected) / len(expected))


def test_a_part_of_the_texts_is_judged_from_what_is_known_of_each(pairs):
    texts, references = pairs
    metrics = TextMetrics(["bleu", "chrf", "rougeL"])
    whole = metrics.statistics(texts, references)
    part = [3, 3, 17, 40]
    again = metrics.values({name: [rows[index] for index in part] for name, rows in whole.items()})
    alone = metrics.statistics([texts[index] for index in part], [references[index] for index in part])
    assert again == pytest.approx(metrics.values(alone))


def test_perfect_texts_have_full_marks():
    metrics = TextMetrics(["bleu", "chrf", "rouge1", "rougeL"])
    text = "what a joy to see this again and again"
    values = metrics.values(metrics.statistics([text], [["no", text]]))
    assert all(value == pytest.approx(100) for value in values.values())


def test_what_cannot_be_computed_is_refused(monkeypatch):
    with pytest.raises(UserError, match="metrics: unknown metric 'blue'; did you mean 'bleu'"):
        TextMetrics(["blue"])
    with pytest.raises(UserError, match="bleu_tokenizer: unknown tokenizer 'spm'"):
        TextMetrics(["bleu"], "spm")
    monkeypatch.setattr(text_metrics, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"rouge1 needs the package rouge_score; pip install 'distillkit\[text\]'"):
        TextMetrics(["rouge1"])


def test_meteor_without_wordnet_is_refused(monkeypatch):
    monkeypatch.setattr(nltk.data, "path", [])
    monkeypatch.setattr(
        nltk.corpus, "wordnet", nltk.corpus.LazyCorpusLoader("wordnet", nltk.corpus.WordNetCorpusReader, None)
    )
    with pytest.raises(UserError, match=r"meteor needs WordNet.*nltk\.downloader wordnet"):
        TextMetrics(["meteor"])
