"""Rows for each of the encoders' tasks, made on the fly, in which there is something to learn."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from tests.tiny import BAD, GOOD, write_jsonl

PEOPLE, PLACES = ["anna", "zoë", "jean luc", "bob"], ["york", "new orleans", "paris", "ulm"]
FILLERS = ["it was cold .", "nobody knew why .", "so they say , and so it is .", "what a day !"]


def score_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Two texts, and how many of their phrases are happy, from 0 to 4."""
    source = random.Random(seed)
    made = []
    for _ in range(count):
        phrases = [source.choice(GOOD if source.random() < 0.5 else BAD) for _ in range(4)]
        score = float(sum(phrase in GOOD for phrase in phrases))
        made.append({"text": " ".join(phrases[:2]), "text_pair": " ".join(phrases[2:]), "score": score})
    return made


def label_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """A text whose labels are the moods of its phrases, none if it has none."""
    source = random.Random(seed)
    moods = {"bad": BAD, "good": GOOD, "place": PLACES}
    made = []
    for _ in range(count):
        labels = [name for name in moods if source.random() < 0.4]
        made.append({"text": " ".join(["so", *(source.choice(moods[name]) for name in labels)]), "labels": labels})
    return made


def tag_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Sentences with people and places in them."""
    source = random.Random(seed)
    made = []
    for _ in range(count):
        tokens, tags = [], []
        for names, kind in ((PEOPLE, "PER"), ([source.choice(FILLERS)], None), (PLACES, "LOC")):
            words = source.choice(names).split()
            tokens += words
            tags += ["O"] * len(words) if kind is None else [f"B-{kind}", *[f"I-{kind}"] * (len(words) - 1)]
        made.append({"tokens": tokens, "tags": tags})
    return made


def question_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Where somebody lives, in a context of a few sentences or many."""
    source = random.Random(seed)
    made = []
    for _ in range(count):
        person, place = source.choice(PEOPLE), source.choice(PLACES)
        before, after = (" ".join(source.choices(FILLERS, k=source.randint(1, 6))) for _ in range(2))
        context = f"{before} {person} lives in {place} . {after}"
        answer = {"text": place, "answer_start": context.index(f"in {place} .") + 3}
        made.append({"question": f"where does {person} live ?", "context": context, "answers": [answer]})
    return made


ROWS = {
    "regression": score_rows,
    "multi_label": label_rows,
    "token_classification": tag_rows,
    "question_answering": question_rows,
}


def write_rows(folder: Path, task: str, count: int = 32) -> Path:
    """Write train.jsonl and validation.jsonl for a task."""
    for split, size, seed in (("train", count, 1), ("validation", 12, 2)):
        write_jsonl(folder / f"{split}.jsonl", ROWS[task](size, seed))
    return folder
