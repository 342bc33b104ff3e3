"""Questions and contexts of which some need several windows."""

from __future__ import annotations

from distillkit.models.tokenizers import ByteLevelBPE
from tests.encoders import word_piece

CONTEXTS = [
    "anna lives in york. " * 6 + "zoe came from paris in 1895 with a dog. " + "it was cold. " * 8,
    "a short one.",
    "the dog was old and the cat was not, so the dog slept.",
]
QUESTIONS = ["who came from paris", "how long is it", "what was old"]
GIVEN = ["zoe", "short one", "dog"]
ANSWERS = [
    {"text": [text], "answer_start": [context.index(text)]} for text, context in zip(GIVEN, CONTEXTS, strict=True)
]
ROWS = {"question": QUESTIONS, "context": CONTEXTS, "answers": ANSWERS}
SMALL = {"max_length": 32, "stride": 6, "max_question": 8}
TOKENIZERS = {
    "words": word_piece(sorted({word.strip(".,") for text in CONTEXTS + QUESTIONS for word in text.split()})),
    "bytes": ByteLevelBPE(vocab_size=340).train(CONTEXTS + QUESTIONS),
}
