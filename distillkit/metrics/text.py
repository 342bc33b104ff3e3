"""Metrics of generated texts, by sacreBLEU, rouge-score and NLTK. All are on the scale of papers, from 0 to 100.

A text is reduced to a few numbers once; any set of texts is then judged from theirs, so that resampling is cheap.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from itertools import zip_longest
from math import fsum
from typing import Any

import numpy as np

from distillkit.errors import UserError, did_you_mean

ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")
PACKAGES = {"bleu": "sacrebleu", "chrf": "sacrebleu", "meteor": "nltk", **dict.fromkeys(ROUGE, "rouge_score")}
METRICS = tuple(PACKAGES)
BLEU_TOKENIZERS = ("13a", "intl", "zh", "char", "none")

Statistics = list[float]  # of one text and metric


class TextMetrics:
    """Some metrics of generated texts against one or several references each.

    BLEU and chrF2 are of the corpus, with sacreBLEU's defaults. ROUGE is the mean F1 of the texts, the best reference
    of each, without stemming; its words are of letters a to z and digits only. METEOR is NLTK's, the mean likewise.

    Args:
        names: Of `METRICS`.
        bleu_tokenizer: sacreBLEU's name of what splits texts into words for BLEU: 13a, intl, zh, char or none.

    Raises:
        UserError: If one is unknown, or what computes it is not installed.
    """

    def __init__(self, names: Sequence[str], bleu_tokenizer: str = "13a") -> None:
        for name in names:
            _check(name)
        if bleu_tokenizer not in BLEU_TOKENIZERS:
            known = ", ".join(BLEU_TOKENIZERS)
            raise UserError(f"unknown tokenizer '{bleu_tokenizer}'", where="bleu_tokenizer", fix=f"use {known}")
        self.names = tuple(dict.fromkeys(names))
        self.bleu_tokenizer = bleu_tokenizer

    def statistics(self, texts: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, list[Statistics]]:
        """Return metric → the numbers of each text.

        Args:
            texts: What a model wrote.
            references: At least one for each text.
        """
        found: dict[str, list[Statistics]] = {}
        if not texts:
            return {name: [] for name in self.names}
        for name in (name for name in self.names if PACKAGES[name] == "sacrebleu"):
            streams = list(zip_longest(*references))
            found[name] = self._corpus_metric(name)._extract_corpus_statistics(texts, streams)
        rouge = [name for name in self.names if name in ROUGE]
        if rouge:
            from rouge_score.rouge_scorer import RougeScorer

            scorer = RougeScorer(rouge)
            scores = [scorer.score_multi(own, text) for text, own in zip(texts, references, strict=True)]
            found |= {name: [[score[name].fmeasure] for score in scores] for name in rouge}
        if "meteor" in self.names:
            found["meteor"] = [[_meteor(text, own)] for text, own in zip(texts, references, strict=True)]
        return {name: found[name] for name in self.names}

    def values(self, statistics: Mapping[str, Sequence[Statistics]]) -> dict[str, float]:
        """Judge texts by their numbers: metric → value, from 0 to 100."""
        return {name: self._value(name, statistics[name]) for name in self.names}

    def _value(self, name: str, rows: Sequence[Statistics]) -> float:
        if PACKAGES[name] == "sacrebleu":
            totals = np.sum(np.asarray(rows), axis=0).tolist()
            return float(self._corpus_metric(name)._compute_score_from_stats(totals).score)
        return 100 * fsum(row[0] for row in rows) / len(rows)

    def _corpus_metric(self, name: str) -> Any:
        from sacrebleu.metrics import BLEU, CHRF

        return BLEU(tokenize=self.bleu_tokenizer, force=True) if name == "bleu" else CHRF()


def _check(name: str) -> None:
    """Refuse a metric that cannot be computed here."""
    if name not in PACKAGES:
        fix = did_you_mean(name, list(METRICS)) or f"use {', '.join(METRICS)}"
        raise UserError(f"unknown metric '{name}'", where="metrics", fix=fix)
    if find_spec(PACKAGES[name]) is None:
        fix = "pip install 'distillkit[text]'"
        raise UserError(f"{name} needs the package {PACKAGES[name]}", where="metrics", fix=fix)
    if name == "meteor":
        _check_wordnet()


def _check_wordnet() -> None:
    from nltk.corpus import wordnet

    try:
        wordnet.ensure_loaded()
    except LookupError as error:
        raise UserError(
            "meteor needs WordNet, which is not on this machine",
            where="metrics",
            fix="python -m nltk.downloader wordnet, or leave it out",
        ) from error


def _meteor(text: str, references: Sequence[str]) -> float:
    from nltk.tokenize import wordpunct_tokenize
    from nltk.translate.meteor_score import meteor_score

    return meteor_score([wordpunct_tokenize(reference) for reference in references], wordpunct_tokenize(text))
