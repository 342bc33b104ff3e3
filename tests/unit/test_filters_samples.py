"""Filters that compare the samples of a prompt, and verifiers and judges of an answer."""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from datasets import Dataset

from distillkit.build import build
from distillkit.data.rows import Rows
from distillkit.errors import UserError
from distillkit.generation.backends.base import Answer, Prompt, Sampling
from distillkit.generation.filters import judge as judge_module
from distillkit.generation.filters.agreement import Agreement
from distillkit.generation.filters.at_least import AtLeast
from distillkit.generation.filters.base import Filter, Given
from distillkit.generation.filters.best_of import BestOf
from distillkit.generation.filters.judge import Judge
from distillkit.generation.filters.opinions import Opinions
from distillkit.generation.filters.scores import LogProbability
from distillkit.generation.filters.verifiers import ExactAnswer, Matches, Verified, Verifier, same_form

GSM8K = [
    {"prompt": "q0", "completion": "She has <<1+1=2>>2.\n#### 2"},
    {"prompt": "q1", "completion": "#### 1,000"},
    {"prompt": "q2", "completion": None},
]
GIVEN = Given(Rows("gsm8k", {"train": Dataset.from_list(GSM8K)}))


def sampled(*groups: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {"prompt": f"q{index}", "completion": text, "source_row": index}
        for index, group in enumerate(groups)
        for text in group
    ]


def verdicts(one: Filter, rows: list[dict], given: Given = GIVEN) -> list[str | None]:
    one.begin(given)
    return one.judge(rows)


def left(one: Filter, rows: list[dict], given: Given = GIVEN) -> list[str]:
    found = verdicts(one, rows, given)
    return [row["completion"] for row, reason in zip(rows, found, strict=True) if reason is None]


def test_the_answer_of_most_samples_is_kept():
    rows = sampled(["so #### 4", "#### 5", "thus #### 4.0", "who knows"], ["#### 7", "#### 7"], ["#### 1", "#### 2"])
    found = verdicts(Agreement(r"####\s*(.+)"), rows)
    other = "not the answer of 2 of 4"
    assert found == [None, other, None, other, None, None, "a tie of 1 of 2", "a tie of 1 of 2"]


def test_agreement_wants_enough_samples_and_a_share_of_them():
    assert verdicts(Agreement(), sampled(["a"])) == ["1 samples"]
    assert verdicts(Agreement(min_samples=1), sampled(["a"])) == [None]
    rows = sampled(["a", "a", "b", "c", "d"])
    assert verdicts(Agreement(), rows) == ["only 2 of 5 agree"] * 5
    assert left(Agreement(min_share=0.4), rows) == ["a", "a"]
    assert verdicts(Agreement("####(.+)"), sampled(["a", "b"])) == ["no answer found"] * 2


def test_agreement_does_not_depend_on_the_order_of_the_samples():
    source = random.Random(0)
    for _ in range(50):
        rows = sampled([source.choice("aabcd") for _ in range(source.randint(1, 7))])
        turned = source.sample(rows, len(rows))
        one = Agreement(min_share=0.3)
        assert sorted(left(one, rows)) == sorted(left(one, turned))


def scored(*log_probs: Sequence[float | None]) -> list[dict[str, Any]]:
    rows = sampled(*([f"{index}.{at}" for at in range(len(group))] for index, group in enumerate(log_probs)))
    numbers = [number for group in log_probs for number in group]
    return [row | {"log_prob": number, "answer_tokens": 1} for row, number in zip(rows, numbers, strict=True)]


def test_the_best_answers_to_each_prompt_are_kept_and_the_first_of_equals():
    rows = scored([-3, -1, -2], [-5], [-1, -1, -1])
    assert left(BestOf(LogProbability()), rows) == ["0.1", "1.0", "2.0"]
    assert left(BestOf(LogProbability(), keep=2), rows) == ["0.1", "0.2", "1.0", "2.0", "2.1"]
    assert verdicts(BestOf(LogProbability()), rows)[0] == "place 3 of 3: -3"


def test_an_answer_without_a_score_is_never_the_best():
    rows = scored([-3, -9], [-1])
    rows[1]["answer_tokens"] = rows[2]["answer_tokens"] = 0
    assert verdicts(BestOf(LogProbability(), keep=2), rows) == [None, "no score", "no score"]


@pytest.mark.parametrize(
    ("first", "second", "equal"),
    [
        ("1,000", "1000", True),
        ("$1000.00", " 1000.", True),
        ("-0", "0", True),
        ("+5", "5", True),
        (".5", "0.50", True),
        ("50%", "50", True),
        ("**42**", "42", True),
        ("1e3", "1000", False),
        ("1,00", "100", False),
        ("10", "1", False),
        ("100", "1e2", False),
        ("12345678901234567890.1", "12345678901234567890.2", False),
        ("Lima ", "lima", True),
        ("New  York.", "new york", True),
        ("a-b", "ab", False),
        ("1/2", "1/2", True),
        ("", "0", False),
    ],
)
def test_answers_are_equal_by_value(first, second, equal):
    assert (same_form(first) == same_form(second)) is equal


def test_answers_are_compared_with_those_of_the_data():
    rows = sampled(["1+1=2 #### 2", "#### 3\nno, #### 2.0", "#### 2\nno, #### 3", "2"], ["#### $1000"], ["#### 1"])
    assert left(Verified(ExactAnswer()), rows) == ["1+1=2 #### 2", "#### 3\nno, #### 2.0", "#### $1000"]
    assert verdicts(Verified(ExactAnswer()), rows)[2] == "wrong"
    assert left(BestOf(ExactAnswer()), rows) == ["1+1=2 #### 2", "#### $1000", "#### 1"]


def test_a_right_answer_may_stand_in_any_column_and_the_whole_of_it_counts_if_nothing_is_extracted():
    given = Given(
        Rows("data", {"test": Dataset.from_list([{"source": "s", "target": "x", "label": "Yes"}])}), split="test"
    )
    rows = [{"source": "s", "target": text, "source_row": 0} for text in ("yes.", "x", "yes, it is")]
    assert verdicts(Verified(ExactAnswer(None, "label")), rows, given) == [None, "wrong", "wrong"]
    assert verdicts(Verified(ExactAnswer(None)), rows, given) == ["wrong", None, "wrong"]
    assert verdicts(Verified(ExactAnswer(r"^\w+", "label")), rows, given) == [None, "wrong", None]
    with pytest.raises(
        UserError, match=r"^column: the dataset has no column 'answer' with the right answers; it has: s"
    ):
        Verified(ExactAnswer(None, "answer")).check(given)
    with pytest.raises(UserError, match=r"do not say what they were made of \(source_row\)"):
        verdicts(Verified(ExactAnswer()), [{"prompt": "q0", "completion": "#### 2"}])


def test_an_answer_must_match_or_must_not():
    rows = sampled(['{"a": 1}', "Sorry, as an AI model I cannot", "{}"])
    assert left(Verified(Matches(r"(?s)^\{.*\}$")), rows) == ['{"a": 1}', "{}"]
    assert left(Verified(Matches(r"(?i)as an ai", wanted=False)), rows) == ['{"a": 1}', "{}"]


class Even(Verifier):
    """A check of a user's own."""

    def __init__(self, than: int = 2) -> None:
        self.than = than

    def verify(self, row, source):
        return len(row["completion"]) % self.than == 0 and source["prompt"] == row["prompt"]


def test_a_check_of_ones_own_is_a_node_of_a_trusted_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "minepkg", SimpleNamespace(Even=Even))
    monkeypatch.setattr(Even, "__module__", "minepkg")
    check = {"_target_": "minepkg.Even", "than": 3}
    node = {"_target_": "distillkit.generation.filters.verifiers.Verified", "check": check}
    with pytest.raises(UserError, match="is outside the trusted packages"):
        build(node, "generate.filters.mine")
    monkeypatch.setenv("DISTILLKIT_TRUST", "minepkg")
    assert left(build(node, "generate.filters.mine"), sampled(["abc", "ab"], ["abcdef"])) == ["abc", "abcdef"]


class Echo:
    """A backend whose model says what a script says, and remembers what it was asked."""

    asks: str | None = "judge"
    chats = True

    def __init__(self, *opinions: str) -> None:
        self.opinions = list(opinions)
        self.asked: list[Prompt] = []

    def open(self, teacher: Any, task: Any) -> Echo:
        assert (teacher, task) == (None, None)
        return self

    def answer(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Answer]]:
        assert (sampling.samples, sampling.temperature) == (1, 0)
        self.asked += prompts
        return [[Answer(self.opinions.pop(0), "stop")] for _ in prompts]

    def facts(self) -> dict[str, Any]:
        return {}


def test_a_judge_reads_prompt_and_answer_and_its_number_is_the_score():
    echo = Echo("Fine.\nScore: 8", "score: 3 ... no, **Score**: 2.5", "I do not know", "Score: 10/10")
    rows = sampled(["{answer} one", "two", "three"], ["four"])
    found = verdicts(AtLeast(Judge(echo, question="Q {prompt} A {answer}"), 7), rows)
    assert found == [None, "2.5, not at least 7", "no score", None]
    assert [prompt.text for prompt in echo.asked][:2] == ["Q q0 A {answer} one", "Q q0 A two"]
    assert left(BestOf(Judge(Echo("Score: 1", "Score: 5", "?", "?"))), rows) == ["two"]


def test_the_judges_own_question_holds_both_texts():
    echo = Echo("Score: 1")
    verdicts(AtLeast(Judge(echo), 1), sampled(["an answer"]))
    assert "q0" in echo.asked[0].text
    assert "an answer" in echo.asked[0].text


def judged(echo: Echo, folder: Path | None, *texts: str, **settings) -> list[float | None]:
    judge = Judge(echo, **settings)
    judge.begin(Given(Rows("data", {}), folder=folder))
    return judge(sampled(texts))


def test_a_judge_is_asked_once_and_what_it_said_survives_a_kill(tmp_path):
    with pytest.raises(IndexError):
        judged(Echo("Score: 1"), tmp_path, "one", "two")  # it dies at the second question, and with it this part
    assert judged(Echo("Score: 1", "Score: 2"), tmp_path, "one", "two", "one") == [1, 2, 1]
    with (tmp_path / "judged.jsonl").open("a") as file:
        file.write('{"question": "00')
    again = Echo("Score: 3")
    assert judged(again, tmp_path, "two", "three", "one") == [2, 3, 1]
    assert len(again.asked) == 1
    assert judged(Echo(), tmp_path, "three", "one", extract=r"(\d)") == [3, 1]
    assert judged(Echo("Score: 9"), tmp_path, "one", question="Is {answer} good?") == [9]
    assert judged(Echo("Score: 8"), None, "one") == [8]
    assert len((tmp_path / "judged.jsonl").read_text().splitlines()) == 4


def test_opinions_are_kept_part_by_part(tmp_path, monkeypatch):
    monkeypatch.setattr(judge_module, "AT_ONCE", 1)
    with pytest.raises(IndexError):
        judged(Echo("Score: 1", "not sure\u2028"), tmp_path, "one", "two", "three")
    assert judged(Echo("Score: 3"), tmp_path, "one", "two", "three") == [1, None, 3]


def test_half_a_line_is_dropped_wherever_it_began(tmp_path):
    for tail in ("x", "x" * 4095, "x" * 4096, "x" * 9000):
        path = tmp_path / "judged.jsonl"
        path.write_text('{"question": "0a", "opinion": "5"}\n' + tail)
        assert Opinions(tmp_path, float).scores == {10: 5.0}
        assert path.read_text().endswith("}\n")
        path.write_text(tail)
        assert Opinions(tmp_path, float).scores == {}
        assert path.read_text() == ""


def test_a_judge_that_cannot_work_is_refused():
    mute = Echo()
    mute.asks = None
    with pytest.raises(UserError, match=r"^backend: the judge needs a model of its own"):
        Judge(mute)
    with pytest.raises(UserError, match=r"^question: does not ask about \{answer\}"):
        Judge(Echo(), question="How good?")
    with pytest.raises(UserError, match=r"^extract: '\(' is no regular expression"):
        Judge(Echo(), extract="(")


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"_target_": "agreement.Agreement", "min_share": 0.0}, "min_share: must be above 0 and at most 1, got 0.0"),
        ({"_target_": "agreement.Agreement", "min_samples": 0}, "min_samples: must be at least 1, got 0"),
        ({"_target_": "agreement.Agreement", "extract": "("}, "extract: '(' is no regular expression"),
        ({"_target_": "verifiers.Matches", "expression": "[a"}, "expression: '[a' is no regular expression"),
        ({"_target_": "best_of.BestOf", "score": None, "keep": 0}, "keep: must be at least 1, got 0"),
        ({"_target_": "best_of.BestOf"}, "BestOf needs 'score'; set generate.filters.one.score"),
    ],
)
def test_settings_that_cannot_work_are_refused_in_one_line(node, message):
    node = node | {"_target_": f"distillkit.generation.filters.{node['_target_']}"}
    with pytest.raises(UserError, match=r"^generate\.filters\.one") as error:
        build(node, "generate.filters.one")
    assert message in str(error.value)
