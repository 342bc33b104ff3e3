"""Every dataset under configs/dataset: with a stand-in of the hub's rows and with a local folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, Features, List

from distillkit import cli, launch
from distillkit.build import build
from distillkit.data import hub
from distillkit.data.rows import Rows
from tests.tiny import write_jsonl

FOLDER = Path(__file__).resolve().parents[2] / "configs/dataset"
GENERIC = {"custom", "files", "hub", "images", "mixed", "pseudo", "pseudo_text", "stdlib"}
ANSWERS = {"text": ["b"], "answer_start": [2]}
PAIR = {"text": "a", "text_pair": "b"}
SENTENCES = {"sentence1": "a", "sentence2": "b"}
CASE = tuple[dict[str, Any], dict[str, Any], dict[str, Any]]


def case(hub_row: dict[str, Any], local: dict[str, Any], expected: dict[str, Any]) -> CASE:
    """A row of the hub, a row of a local file, and what both become; a class "x" is 1 of two on the hub."""
    return hub_row, local, expected


TEXT = {"text": "a", "label": "x"}
ASKED = {"id": "1", "question": "q", "context": "a b", "answers": ANSWERS}
TAGGED = {"tokens": ["a"], "tags": ["x"]}
TRANSLATED = {"source": "a", "target": "b"}
TOLD = {"instruction": "i", "input": "a", "completion": "c"}
CASES: dict[str, CASE] = {
    "cola": case({"sentence": "a", "label": "x", "idx": 0}, TEXT, TEXT),
    "sst2": case({"sentence": "a", "label": "x", "idx": 0}, TEXT, TEXT),
    "mrpc": case(SENTENCES | {"label": "x"}, SENTENCES | {"label": "x"}, PAIR | {"label": "x"}),
    "qqp": case({"question1": "a", "question2": "b", "label": "x"}, SENTENCES | {"label": "x"}, PAIR | {"label": "x"}),
    "stsb": case(SENTENCES | {"label": 2.5}, SENTENCES | {"score": 2.5, "genre": "n"}, PAIR | {"score": 2.5}),
    "mnli": case({"premise": "a", "hypothesis": "b", "label": "x"}, SENTENCES | {"label": "x"}, PAIR | {"label": "x"}),
    "qnli": case({"question": "a", "sentence": "b", "label": "x"}, SENTENCES | {"label": "x"}, PAIR | {"label": "x"}),
    "rte": case(SENTENCES | {"label": "x"}, SENTENCES | {"label": "x"}, PAIR | {"label": "x"}),
    "wnli": case(SENTENCES | {"label": "x"}, SENTENCES | {"label": "x"}, PAIR | {"label": "x"}),
    "ag_news": case(TEXT, TEXT, TEXT),
    "tweet_emotion": case(TEXT, TEXT, TEXT),
    "banking77": case({"text": "a", "label": 1, "label_text": "x"}, TEXT, TEXT),
    "sick": case(
        {"id": "1", "sentence_A": "a", "sentence_B": "b", "label": "x", "relatedness_score": 4.5},
        SENTENCES | {"id": "1", "label": "x", "score": 4.5},
        PAIR | {"id": "1", "label": "x", "score": 4.5},
    ),
    "squad": case(ASKED | {"title": "t"}, ASKED | {"title": "t"}, ASKED),
    "squad_v2": case(ASKED | {"title": "t"}, ASKED, ASKED),
    "conll2003": case({"tokens": ["a"], "pos_tags": [3], "ner_tags": ["x"]}, TAGGED, TAGGED),
    "wnut17": case({"tokens": ["a"], "ner_tags": ["x"]}, TAGGED, TAGGED),
    "wikitext2": case({"text": "long"}, {"title": "t", "text": "long"}, {"text": "long"}),
    "wikitext103": case({"text": "long"}, {"text": "long"}, {"text": "long"}),
    "multi30k": case({"en": "a", "de": "b"}, TRANSLATED, TRANSLATED),
    "wmt16_en_de": case({"translation": {"de": "b", "en": "a"}}, TRANSLATED, TRANSLATED),
    "xsum": case({"document": "a", "summary": "b", "id": 3}, TRANSLATED | {"id": "3"}, TRANSLATED | {"id": "3"}),
    "cnn_dailymail": case({"article": "a", "highlights": "b"}, TRANSLATED, TRANSLATED),
    "e2e_nlg": case({"meaning_representation": "a", "human_reference": "b"}, TRANSLATED, TRANSLATED),
    "scitldr": case(
        {"source": ["a", "b"], "target": ["c", "d"]},
        {"source": "a b", "target": "c", "references": ["c", "d"]},
        {"source": "a b", "target": "c", "references": ["c", "d"]},
    ),
    "alpaca": case(
        {"instruction": "i", "input": "a", "output": "c", "text": "i a c"},
        {"instruction": "i", "input": "a", "output": "c"},
        TOLD,
    ),
    "dolly": case(
        {"instruction": "i", "context": "a", "response": "c", "category": "qa"},
        {"instruction": "i", "input": "a", "output": "c"},
        TOLD,
    ),
    "gsm8k": case(
        {"question": "q", "answer": "a"},
        {"question": "q", "answer": "a", "final_answer": "3"},
        {"prompt": "q", "completion": "a"},
    ),
}


def on_the_hub(row: dict[str, Any]) -> Dataset:
    names = ClassLabel(names=["w", "x"])
    features = Dataset.from_list([row]).features
    kinds = {"x": names, "['x']": List(names)}
    declared = {name: kinds.get(str(row[name]), kind) for name, kind in features.items()}
    if "label_text" in row:
        declared |= {"label_text": features["label_text"]}
    ids = {name: {"x": 1, "['x']": [1]}.get(str(row[name]), row[name]) for name in row if name != "label_text"}
    return Dataset.from_list([row | ids] * 3, features=Features(declared))


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Load a dataset as the command line would."""

    def loaded(*words: str) -> Rows:
        started: list[Any] = []
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(launch, "start", lambda *what: started.append(what))
        assert cli.main(["train", *words, "student.path=small"]) == 0
        return build(started[0][1].dataset, "dataset").load()

    return loaded


def test_every_preset_is_tried():
    presets = {path.stem for path in FOLDER.glob("*.yaml")} - GENERIC
    assert presets == set(CASES)
    for path in FOLDER.glob("*.yaml"):
        assert path.read_text().startswith("# "), path


@pytest.mark.parametrize("name", CASES)
def test_from_the_hub(name, load, monkeypatch):
    row, _, expected = CASES[name]

    def load_dataset(path: str, config: str | None, *, split: str, revision: str | None, **more: Any) -> Dataset:
        assert "/" in path
        if split == "validation" and "validation_share" in (FOLDER / f"{name}.yaml").read_text():
            raise ValueError('Unknown split "validation". Should be one of ["train", "test"].')
        return on_the_hub(row)

    monkeypatch.setattr(hub, "load_dataset", load_dataset)
    rows = load(f"dataset={name}", "dataset.validation_share=null", "dataset.on_leak=ignore")
    assert rows.splits["train"][0] == expected
    assert "train" in rows.splits
    if "x" in expected.values() and name != "banking77":
        assert rows.labels == ["w", "x"]


@pytest.mark.parametrize("name", CASES)
def test_from_a_folder(name, load, tmp_path):
    _, row, expected = CASES[name]
    for split in ("train", "validation", "test"):
        write_jsonl(tmp_path / f"data/{split}.jsonl", [row] * 3)
    rows = load(f"dataset={name}", "dataset.path=data", "dataset.test=test")
    assert list(rows.splits) == ["train", "validation", "test"]
    assert all(table[0] == expected for table in rows.splits.values())
    assert rows.name == "data"


def test_the_hub_s_splits_are_named_in_the_preset(load, monkeypatch):
    asked = []

    def load_dataset(path: str, config: str | None, **more: Any) -> Dataset:
        asked.append((path, config, more))
        return on_the_hub({"premise": "a", "hypothesis": "b", "label": "x"})

    monkeypatch.setattr(hub, "load_dataset", load_dataset)
    load("dataset=mnli", "dataset.test=null", "dataset.validation=validation_mismatched")
    assert asked == [
        ("nyu-mll/glue", "mnli", {"split": "train", "revision": None}),
        ("nyu-mll/glue", "mnli", {"split": "validation_mismatched", "revision": None}),
    ]


def test_without_a_validation_split_a_share_of_the_training_rows_is_taken(load, monkeypatch):
    def load_dataset(path: str, config: str | None, *, split: str, **more: Any) -> Dataset:
        if split != "train":
            raise ValueError(f'Unknown split "{split}".')
        return Dataset.from_list([{"instruction": f"i{row}", "context": "", "response": "c"} for row in range(200)])

    monkeypatch.setattr(hub, "load_dataset", load_dataset)
    rows = load("dataset=dolly")
    assert list(rows.splits) == ["train", "validation"]
    assert 0 < len(rows.splits["validation"]) < 30
