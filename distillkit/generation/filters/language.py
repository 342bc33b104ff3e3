"""Answers in another language than wanted."""

from __future__ import annotations

from functools import cache
from typing import Any

from distillkit.errors import UserError, did_you_mean
from distillkit.generation.filters.base import Filter, Row, answer_of


class Language(Filter):
    """Reject answers that are surely in another language than wanted, as py3langid tells them apart without a network.

    Code, tables and formulas, of which nobody is sure, are kept.

    Args:
        languages: Codes of ISO 639-1, such as [en, de].
        certainty: Probability of another language from which on an answer is rejected.
        min_chars: Shorter answers are kept.
    """

    hint = "name the languages that the teacher writes"

    def __init__(self, languages: list[str], certainty: float = 0.5, min_chars: int = 20) -> None:
        if not 0 < certainty < 1:
            raise UserError(f"must be between 0 and 1, got {certainty}", where="certainty")
        if not languages:
            raise UserError("names no language", where="languages", fix="such as [en]")
        self.identifier = _identifier()
        for code in languages:
            if code not in self.identifier.labels:
                fix = did_you_mean(code, self.identifier.labels)
                raise UserError(f"no language '{code}' is known", where="languages", fix=fix)
        self.languages = frozenset(languages)
        self.certainty = certainty
        self.min_chars = min_chars

    def judge(self, rows: list[Row]) -> list[str | None]:
        """Reject answers whose likeliest language is likely enough, and none of the wanted."""
        return [self._reason(answer_of(row)) for row in rows]

    def _reason(self, text: str) -> str | None:
        if len(text.strip()) < self.min_chars:
            return None
        language, probability = self.identifier.classify(text)
        if language in self.languages or probability < self.certainty:
            return None
        return f"{probability:.0%} {language}"


@cache
def _identifier() -> Any:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError as error:
        fix = "pip install 'distillkit[filters]'"
        raise UserError("telling languages apart needs the package py3langid", fix=fix) from error
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
