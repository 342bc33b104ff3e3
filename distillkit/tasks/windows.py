"""Cut a long context into overlapping windows, each with the question, and find the answer's tokens in them."""

from __future__ import annotations

from typing import Any

from distillkit.signals import IGNORE
from distillkit.tasks.text import cutting

Answer = dict[str, list[Any]]  # {"text": […], "answer_start": […]}
ROOM = 8  # tokens that are left for special ones, and for context besides what windows share


def windows(
    questions: list[str],
    contexts: list[str],
    answers: list[Answer | None],
    tokenizer: Any,
    max_length: int,
    stride: int,
    max_question: int,
    always_answered: bool,
) -> dict[str, list]:
    """Encode questions with their contexts, several windows a row.

    Args:
        questions: Of each row.
        contexts: Likewise.
        answers: Likewise; the first one is learned, all are right. Without texts: there is no answer. None: unknown.
        tokenizer: A fast one of transformers.
        max_length: Tokens of a window.
        stride: Tokens of context that a window shares with the one before.
        max_question: Tokens of a question.
        always_answered: Whether a row without an answer is bad.

    Returns:
        For each window: "input_ids", "token_type_ids" if there are any; "row" and "truncated" (its question was cut);
        "first", the position of its first token of context, and "null", that of the token for "not here"; "span", the
        positions of the answer's first and last token, those of "null" if it is not here, `IGNORE` if unknown; "text",
        the part of the context, where in it each token starts and ends, and where it begins in the context ("base");
        "answers", all that are right. And "bad".
    """
    questions, cut = _cut_questions(questions, tokenizer, max_question)
    with cutting(tokenizer, "right"):
        encoded = tokenizer(
            questions,
            contexts,
            truncation="only_second",
            max_length=max_length,
            stride=stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
    problems = [_problem(*row, always_answered) for row in zip(answers, contexts, strict=True)]
    names = [name for name in ("input_ids", "token_type_ids") if name in encoded]
    own = ("row", "truncated", "first", "null", "span", "text", "starts", "ends", "base", "answers")
    columns: dict[str, list] = {name: [] for name in (*names, *own)}
    read = set()
    for index, row in enumerate(encoded["overflow_to_sample_mapping"]):
        places = [place for place, part in enumerate(encoded.sequence_ids(index)) if part == 1]
        if not places:
            continue
        read.add(row)
        context, answer, ids = contexts[row], answers[row], encoded["input_ids"][index]
        spans = [_trimmed(context, *encoded["offset_mapping"][index][place]) for place in places]
        null = ids.index(tokenizer.cls_token_id) if tokenizer.cls_token_id in ids else 0
        base = spans[0][0]
        values = {
            "row": row,
            "truncated": cut[row],
            "first": places[0],
            "null": null,
            "span": [IGNORE] * 2 if answer is None or problems[row] else _target(answer, spans, places[0], null),
            "text": context[base : spans[-1][1]],
            "starts": [start - base for start, _ in spans],
            "ends": [end - base for _, end in spans],
            "base": base,
            "answers": None if answer is None else list(answer["text"]),
        }
        for name, value in ({name: encoded[name][index] for name in names} | values).items():
            columns[name].append(value)
    bad = [(row, problem) for row, problem in enumerate(problems) if problem is not None]
    bad += [(row, "its context has no token") for row in range(len(contexts)) if row not in read]
    return columns | ({"bad": bad} if bad else {})


def _cut_questions(questions: list[str], tokenizer: Any, max_question: int) -> tuple[list[str], list[bool]]:
    """Cut questions of too many tokens; tell which ones were."""
    encoded = tokenizer(questions, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    cut = [len(ids) > max_question for ids in encoded["input_ids"]]
    parts = zip(questions, cut, encoded["offset_mapping"], strict=True)
    return [q[: spans[max_question - 1][1]] if is_long else q for q, is_long, spans in parts], cut


def _problem(answer: Answer | None, context: str, always_answered: bool) -> str | None:
    """Tell what is wrong with the answers of a row."""
    if answer is None:
        return None
    if always_answered and not answer["text"]:
        return "there is no answer; unanswerable questions need task.null_threshold, such as 0"
    for text, start in zip(answer["text"], answer["answer_start"], strict=True):
        if not text:
            return "an answer is empty"
        if start < 0 or context[start : start + len(text)] != text:
            return f"the answer '{text[:40]}' is not in its context at {start}"
    return None


def _trimmed(context: str, start: int, end: int) -> tuple[int, int]:
    """Leave out blanks before a token, which some tokenizers take for a part of it."""
    while start < end and context[start].isspace():
        start += 1
    return start, end


def _target(answer: Answer, spans: list[tuple[int, int]], first: int, null: int) -> list[int]:
    """Return the positions of the first answer's first and last token; twice `null` if it is not whole in the window.

    Args:
        answer: Of the row.
        spans: First character of each token of the window's context, and the one after its last.
        first: Position of the first of them.
        null: Position of what stands for "not here".
    """
    if not answer["text"]:
        return [null, null]
    begin = answer["answer_start"][0]
    end = begin + len(answer["text"][0])
    inside = [place for place, (start, stop) in enumerate(spans) if stop > begin and start < end]
    if not inside or spans[0][0] > begin or spans[-1][1] < end:
        return [null, null]
    return [first + inside[0], first + inside[-1]]
