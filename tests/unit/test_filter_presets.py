"""Every choice of configs/generate/filters composes, alone and with others, and names all arguments of its classes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from distillkit import cli, launch
from distillkit.build import build, locate

FOLDER = Path(__file__).resolve().parents[2] / "configs/generate/filters"
PRESETS = sorted(path.stem for path in FOLDER.glob("*.yaml"))
NEEDED = {
    "judge": ["generate.filters.judge.score.backend.model=grader"],
    "matches": ["generate.filters.matches.check.expression=a"],
}

Compose = Callable[..., dict[str, Any]]


@pytest.fixture
def compose(monkeypatch, tmp_path) -> Compose:
    """The filters of a run, as the command line hands them to it."""

    def composed(*words: str) -> dict[str, Any]:
        started: list[Any] = []
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(launch, "start", lambda *what: started.append(what))
        rest = ["teacher=live", "teacher.path=big", "dataset.train=rows.csv"]
        assert cli.main(["generate-pseudo", "generate=text", *words, *rest]) == 0
        return started[0][1].generate["filters"]

    return composed


def nodes(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        if "_target_" in value:
            yield value
        for inner in value.values():
            yield from nodes(inner)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_builds_and_shows_every_argument(name, compose):
    filters = compose(f"generate/filters={name}", *NEEDED.get(name, []))
    build({"_target_": "distillkit.generation.text.TeacherText", "filters": filters}, "generate")
    for node in nodes(filters):
        known = set(inspect.signature(locate(node["_target_"], "x")).parameters)
        assert known <= set(node), node["_target_"]


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_says_what_it_rejects_and_what_each_option_does(name):
    first, *lines = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    assert first.startswith("# ")
    options = [line for line in lines if line.strip() and not line.strip().startswith(("#", "_target_", "-"))]
    values = [line for line in options if not line.rstrip().endswith(":") and line.strip() != "{}"]
    plain = ("per_token", "max_chars", "max_words", "min_tokens", "max_tokens", "min_ratio", "max_ratio")
    assert [line for line in values if "#" not in line and not line.strip().startswith(plain)] == []


def test_basic_filters_are_the_default_of_text_and_can_be_switched_off(compose):
    assert list(compose()) == ["finished", "empty", "repetition", "duplicates"]
    assert list(compose("~generate.filters.repetition")) == ["finished", "empty", "duplicates"]
    assert compose("generate.filters.repetition=null")["repetition"] is None
    assert compose("generate/filters=none") == {}


def test_choices_are_combined_and_changed_on_the_command_line(compose):
    found = compose("generate/filters=[strict,length,language]", "generate.filters.length.max_tokens=300")
    assert list(found)[4:] == ["near_duplicates", "evaluation", "confidence", "length", "language"]
    assert found["length"]["max_tokens"] == 300


def test_a_choice_that_is_not_there_is_refused(compose, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["generate-pseudo", "generate=text", "generate/filters=[basic,lenght]", "dataset.train=x"]) == 2
    assert "generate/filters: no option 'lenght'; did you mean 'length'?" in capsys.readouterr().err


def test_a_judge_in_this_process_is_chosen_by_its_backend(compose):
    backend = "generate/backend@generate.filters.judge.score.backend=transformers"
    found = compose("generate/filters=[basic,judge]", backend, "generate.filters.judge.score.backend.path=grader")
    assert found["judge"]["score"]["backend"]["path"] == "grader"
