"""Texts as filters compare them: words, runs of words, and their hashes."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

import numpy as np
import xxhash

# A word is a run of letters and digits; in scripts that put no space between words, each character is one.
UNSPACED = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{UNSPACED}]|[^\W_{UNSPACED}]+")
_WORD_OR_SIGN = re.compile(rf"{_WORD.pattern}|\S")


def words(text: str, signs: bool = False) -> list[str]:
    """Split a text into words without case.

    Args:
        text: Any.
        signs: Whether punctuation and other signs are words too, each by itself.
    """
    pattern = _WORD_OR_SIGN if signs else _WORD
    return pattern.findall(unicodedata.normalize("NFKC", text).casefold())


def runs(parts: Sequence[str], length: int) -> list[str]:
    """Return all runs of `length` neighbouring words; of fewer words, the one run that there is."""
    if len(parts) <= length:
        return [" ".join(parts)] if parts else []
    return [" ".join(parts[start : start + length]) for start in range(len(parts) - length + 1)]


def hashes(texts: Sequence[str]) -> np.ndarray:
    """Hash texts to uint64 `[texts]`, the same on every machine."""
    return np.fromiter((xxhash.xxh3_64_intdigest(text.encode()) for text in texts), dtype=np.uint64, count=len(texts))
