"""Filters that look at one row: each keeps what it must and rejects what it must, with the reason."""

from __future__ import annotations

import sys

import pytest

from distillkit.build import build
from distillkit.data.rows import Rows
from distillkit.errors import UserError
from distillkit.generation.filters import language
from distillkit.generation.filters.at_least import AtLeast
from distillkit.generation.filters.base import Filter, Given, answer_of, prompt_of, same_prompt, samples
from distillkit.generation.filters.empty import NotEmpty
from distillkit.generation.filters.finished import Finished
from distillkit.generation.filters.language import Language
from distillkit.generation.filters.length import Length
from distillkit.generation.filters.repetition import Repetition
from distillkit.generation.filters.scores import Certainty, LogProbability
from distillkit.generation.filters.words import runs, words
from tests.tiny import tokenizer

TURNS = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello?"}]
GERMAN = "Das ist ein langer deutscher Satz über Hunde und Katzen."
ENGLISH = "This is a long English sentence about dogs and cats."
CODE = "def f(x):\n    return [y**2 for y in x if y % 2 == 0]\n"


def verdicts(one: Filter, rows: list[dict], tokens: object = None) -> list[str | None]:
    one.begin(Given(Rows("data", {}), tokenizer=tokens))
    found = one.judge(rows)
    turned = one.judge(rows[::-1])  # these filters look at one row at a time
    assert turned[::-1] == found
    return found


def answers(*texts: str) -> list[dict]:
    return [{"prompt": "Why?", "completion": text} for text in texts]


@pytest.mark.parametrize(
    ("row", "prompt", "answer"),
    [
        ({"prompt": "p", "completion": "c", "finished": True}, "p", "c"),
        ({"source": "s", "target": "t"}, "s", "t"),
        ({"text": "t", "finished": False}, "", "t"),
        ({"prompt": "p", "completion": ""}, "p", ""),
        ({"instruction": "i", "input": "x", "system": "s", "completion": "c"}, "i\nx", "c"),
        ({"instruction": "i", "input": "", "completion": "c"}, "i", "c"),
        ({"messages": [*TURNS, {"role": "assistant", "content": "Hi."}]}, "Be kind.\nHello?", "Hi."),
        ({"messages": [*TURNS, {"role": "assistant", "content": None}]}, "Be kind.\nHello?", ""),
        ({"text": "t", "text_pair": "u", "label": 0}, "", "t\nu"),
        ({"label": "good"}, "", ""),
    ],
)
def test_prompt_and_answer_are_found_in_every_kind_of_row(row, prompt, answer):
    assert (prompt_of(row), answer_of(row)) == (prompt, answer)


def test_samples_of_a_prompt_are_neighbours_of_one_source_row_or_of_one_prompt():
    assert list(samples([{"prompt": p} for p in "aabba"])) == [[0, 1], [2, 3], [4]]
    assert list(samples([{"prompt": "a", "source_row": i // 2} for i in range(5)])) == [[0, 1], [2, 3], [4]]
    assert list(samples([{"text": "a"}, {"text": "a"}])) == [[0], [1]]
    assert not same_prompt({"prompt": "a", "source_row": 0}, {"prompt": "a"})
    assert list(samples([])) == []


def test_an_answer_that_was_cut_off_is_rejected_and_a_continuation_only_if_wanted():
    rows = [{"completion": "a", "finished": done} for done in (True, False)]
    rows += [{"completion": "a", "finished": False, "finish_reason": "content_filter"}, {"completion": "a"}]
    rows += [{"text": "a", "finished": False}]
    assert verdicts(Finished(), rows) == [None, "cut off (length)", "cut off (content_filter)", None, None]
    assert verdicts(Finished(continuations=True), rows)[4] == "cut off (length)"


def test_an_answer_without_a_visible_character_is_rejected():
    assert verdicts(NotEmpty(), answers("", " \n\t", "\u00a0", ".", "a")) == ["empty"] * 3 + [None] * 2


@pytest.mark.parametrize(
    ("limits", "kept"),
    [
        ({"min_chars": 4}, ["12345678", "one two"]),
        ({"max_chars": 4}, ["", "abc"]),
        ({"min_chars": 3, "max_chars": 7}, ["abc", "one two"]),
        ({"min_words": 1, "max_words": 1}, ["abc", "12345678"]),
        ({"min_ratio": 1.0}, ["12345678", "one two"]),
        ({"max_ratio": 0.75}, ["", "abc"]),
    ],
)
def test_length_is_limited_from_both_sides(limits, kept):
    rows = answers("", "abc", "12345678", "one two")
    found = verdicts(Length(**limits), rows)
    assert [row["completion"] for row, reason in zip(rows, found, strict=True) if reason is None] == kept


def test_length_says_by_how_much():
    assert verdicts(Length(max_words=2), answers("one two three")) == ["3 words, not at most 2"]
    assert verdicts(Length(min_ratio=2), answers("one")) == ["0.75 times its prompt, not at least 2"]
    assert verdicts(Length(min_ratio=2), [{"text": "without a prompt"}]) == [None]


def test_tokens_are_those_that_the_teacher_wrote_or_its_tokenizer_counts():
    ours = tokenizer()
    counted = len(ours("what a joy")["input_ids"])
    rows = [{"completion": "what a joy"}, {"completion": "what a joy", "answer_tokens": counted + 1}]
    assert verdicts(Length(max_tokens=counted), rows, ours) == [None, f"{counted + 1} tokens, not at most {counted}"]
    with pytest.raises(UserError, match=r"^min_tokens, max_tokens: nobody counts tokens here"):
        verdicts(Length(max_tokens=3), rows)


LOOP = "I think that the answer is yes. " * 8
SONG = "Row, row, row your boat,\nGently down the stream.\nMerrily, merrily, merrily, merrily,\nLife is but a dream."
TABLE = "| a | b |\n|---|---|\n" + "".join(f"| {i} | {i * i} |\n" for i in range(20))
BRACES = "{\n" + "".join(f"  if (x == {i}) {{\n    y = {i * 3};\n  }}\n" for i in range(9)) + "}\n"


@pytest.mark.parametrize(
    "text", [LOOP, "go " * 40, "同じ文です。" * 9, "# A\nsame line\n" + "same line\n" * 5, "a" * 200]
)
def test_an_answer_that_goes_round_in_circles_is_rejected(text):
    assert verdicts(Repetition(), answers(text))[0] is not None


@pytest.mark.parametrize("text", [SONG, TABLE, ENGLISH, GERMAN, CODE, BRACES, "Yes.", "", "-" * 80, "1, 1, 2, 3, 5"])
def test_songs_tables_and_code_are_no_circles(text):
    assert verdicts(Repetition(), answers(text)) == [None]


def test_each_measure_of_repetition_can_be_switched_off():
    nothing = {"max_ngrams": None, "max_lines": None, "max_run": None}
    assert verdicts(Repetition(**nothing), answers(LOOP, "a" * 200)) == [None, None]
    assert verdicts(Repetition(**nothing | {"max_run": 3}), answers("aaaa", "aaa", "....")) == [
        "4 times 'a' in a row",
        None,
        "4 times '.' in a row",
    ]
    only = Repetition(**nothing | {"max_ngrams": 0.5}, ngram=1)
    assert verdicts(only, answers("a b a b", "a a a a")) == [None, "75% of its runs of 1 words repeat"]


def test_another_language_is_rejected_where_it_is_sure():
    rows = answers(
        ENGLISH, GERMAN, CODE, "Hallo!", "2 + 2 = 4, 3 + 3 = 6, 4 + 4 = 8", "これは日本語の文章です。とても長いです。"
    )
    found = verdicts(Language(["en"]), rows)
    assert [reason is None for reason in found] == [True, False, True, True, True, False]
    assert found[1].endswith(" de")
    assert verdicts(Language(["en", "de", "ja"]), rows) == [None] * 6
    assert verdicts(Language(["en"], min_chars=100), rows) == [None] * 6


def test_a_missing_package_for_languages_is_refused_with_what_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "py3langid.langid", None)
    language._identifier.cache_clear()
    with pytest.raises(UserError, match=r"needs the package py3langid; pip install 'distillkit\[filters\]'"):
        Language(["en"])


def test_an_unlikely_answer_is_rejected():
    rows = [{"completion": "a", "log_prob": -6.0, "answer_tokens": n} for n in (2, 3, 4)]
    rows.append({"completion": "", "log_prob": 0.0, "answer_tokens": 0})
    assert LogProbability()(rows) == [-3.0, -2.0, -1.5, None]
    assert LogProbability(per_token=False)(rows[:3]) == [-6.0] * 3
    assert verdicts(AtLeast(LogProbability(), -2.0), rows) == ["-3, not at least -2", None, None, "no score"]
    with pytest.raises(UserError, match="the answers came without log-probabilities; use generate=text"):
        verdicts(AtLeast(LogProbability(), -2.0), answers("a"))


def test_an_unsure_soft_label_is_rejected():
    rows = [{"text": "a", "label": 0, "teacher_logits": logits} for logits in ([0.0, 0.0], [1000.0, 0.0], [3.0, 0.0])]
    assert Certainty()(rows) == pytest.approx([0.5, 1.0, 0.9525741268], abs=1e-9)  # 1 / (1 + e⁻³)
    assert [reason is None for reason in verdicts(AtLeast(Certainty(), 0.9), rows)] == [False, True, True]
    several = [
        {"text": "a", "labels": [0], "teacher_logits": [-5.0, 3.0]},
        {"text": "a", "labels": [], "teacher_logits": [-9.0]},
    ]
    assert Certainty()(several) == pytest.approx([0.9525741268, 0.9998766054], abs=1e-9)
    for row in ({"text": "a"}, {"text": "a", "score": 1.0, "teacher_logits": [1.0]}):
        with pytest.raises(UserError, match="no logits of several classes"):
            Certainty()([row])


def test_words_are_runs_of_letters_and_digits_or_single_characters_of_unspaced_scripts():
    assert words("Don't STOP, 3.5 straße!") == ["don", "t", "stop", "3", "5", "strasse"]
    assert words("Ａb日本語 คน x") == ["ab", "日", "本", "語", "ค", "น", "x"]
    assert words("a+b = c", signs=True) == ["a", "+", "b", "=", "c"]
    assert runs(["a", "b", "c"], 2) == ["a b", "b c"]
    assert runs(["a", "b"], 3) == ["a b"]
    assert runs([], 3) == []


FOLDER = "distillkit.generation.filters"


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"_target_": "length.Length"}, "no limit is given; set min_chars"),
        ({"_target_": "length.Length", "min_words": 5, "max_words": 4}, "no answer has 5 to 4 words"),
        ({"_target_": "length.Length", "min_chars": -1}, "no answer has at least -1 characters"),
        ({"_target_": "length.Length", "max_char": 1}, "Length has no argument 'max_char'; did you mean 'max_chars'?"),
        ({"_target_": "repetition.Repetition", "ngram": 0}, "ngram: must be at least 1, got 0"),
        ({"_target_": "repetition.Repetition", "max_lines": 2.0}, "max_lines: must be a share from 0 to 1, got 2.0"),
        ({"_target_": "repetition.Repetition", "max_run": 0}, "max_run: must be at least 1, got 0"),
        ({"_target_": "language.Language", "languages": ["xx"]}, "languages: no language 'xx' is known"),
        ({"_target_": "language.Language", "languages": []}, "languages: names no language; such as [en]"),
        (
            {"_target_": "language.Language", "languages": ["en"], "certainty": 1.0},
            "certainty: must be between 0 and 1",
        ),
    ],
)
def test_settings_that_cannot_work_are_refused_in_one_line(node, message):
    node = node | {"_target_": f"{FOLDER}.{node['_target_']}"}
    with pytest.raises(UserError) as error:
        build(node, "generate.filters.one")
    assert str(error.value).startswith("generate.filters.one")
    assert message in str(error.value)
    assert "\n" not in str(error.value)
