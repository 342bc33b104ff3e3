"""Data from the command line: folders, templates, filters, bad rows, leaks and the cache."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.terminal import Outcome, distillkit
from tests.tiny import classifier, data_files, events, language_model, rows, save, write_jsonl

RUN = ["train", "student.path=student", "task.max_length=32", "train.max_steps=2", "train.batch_size=8"]
FILES = ["dataset.train=mixed.jsonl", "dataset.validation=data/validation.jsonl"]


@pytest.fixture(scope="module", autouse=True)
def kit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working directory: models and data."""
    folder = tmp_path_factory.mktemp("kit")
    save(classifier(layers=1), folder / "student")
    save(language_model(layers=1), folder / "writer")
    data_files(folder / "data")
    made = rows(30, seed=5)
    bad = [{"text": "so", "label": "goood"}, {"text": None, "label": "bad"}, {"text": "", "label": "bad"}]
    write_jsonl(folder / "mixed.jsonl", [*made[:20], *bad, *made[20:]])
    write_jsonl(
        folder / "pairs/train.jsonl", [{"sentence1": r["text"], "sentence2": "so", "label": r["label"]} for r in made]
    )
    held = [{"sentence1": r["text"] + "!", "sentence2": "no", "label": r["label"]} for r in made[:8]]
    write_jsonl(folder / "pairs/validation.jsonl", held)
    asked = [{"ask": f"what is {n}", "say": f"it is {n}", "lang": "en" if n % 2 else "de"} for n in range(40)]
    write_jsonl(folder / "asked.jsonl", asked)
    write_jsonl(folder / "leaky/train.jsonl", made)
    write_jsonl(folder / "leaky/validation.jsonl", made[:4])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


def run(*argv: str) -> Outcome:
    result = distillkit(*argv)
    assert (result.code, result.err) == (0, "")
    return result


def report(folder: str) -> dict:
    return json.loads(Path(folder, "report.json").read_text())["train"]


def cached() -> set[str]:
    return {path.parent.name for path in Path(os.environ["DISTILLKIT_CACHE"]).glob("*/rows.arrow")}


def test_a_folder_is_enough() -> None:
    result = run(*RUN, "dataset.path=data", "output_dir=folder")
    assert report("folder")["data"]["train"]["rows"] == 40
    assert report("folder")["data"]["validation"]["encoded"] == 20
    assert "data" in result.out


def test_a_preset_reads_a_folder_of_the_same_form() -> None:
    result = run(*RUN, "dataset=mrpc", "dataset.path=pairs", "output_dir=pairs-run")
    assert report("pairs-run")["data"]["train"]["rows"] == 30
    assert "leak" not in result.out


def test_bad_rows_are_refused_with_file_and_line_and_nothing_is_written() -> None:
    before = {str(path) for path in Path().rglob("*")}, cached()
    result = distillkit(*RUN, *FILES, "dataset.labels=[bad,good]", "output_dir=refused")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert (
        "mixed.jsonl:21: label 'goood' is not among the declared ones; did you mean 'good'?; 2 more of 33" in result.err
    )
    assert ({str(path) for path in Path().rglob("*")}, cached()) == before


def test_bad_rows_are_skipped_and_named() -> None:
    words = ["dataset.labels=[bad,good]", "dataset.on_bad_row=skip", "output_dir=skipped"]
    result = run(*RUN, *FILES, *words)
    assert "train: 3 of 33 rows skipped: mixed.jsonl:21: label 'goood'" in result.out
    assert "mixed.jsonl:22: text is missing; mixed.jsonl:23: text is empty" in result.out
    counts = report("skipped")["data"]["train"]
    assert (counts["rows"], counts["encoded"], counts["bad"]) == (33, 30, 3)


def test_truncation_is_reported_as_a_share() -> None:
    result = run(*RUN, "dataset.path=data", "task.max_length=8", "output_dir=short")
    assert "% of the rows are longer than task.max_length and were cut" in result.out
    assert report("short")["data"]["train"]["truncated"] > 0


def test_templates_filters_and_a_validation_share() -> None:
    words = [
        "task=causal_lm",
        "student.path=writer",
        "dataset.train=asked.jsonl",
        "dataset.template={prompt: 'Q: {ask}? A:', completion: ' {say}'}",
        "dataset.filter={lang: en}",
        "dataset.validation_share=0.3",
        "output_dir=templates",
    ]
    result = run(*RUN, *words)
    assert "train: the filter keeps 20 of 40 rows" in result.out
    data = report("templates")["data"]
    assert data["train"]["rows"] + data["validation"]["rows"] == 20
    assert f"validation: {data['validation']['rows']} of 20 training rows, by their hash" in result.out


def test_leaks_are_reported_dropped_or_refused() -> None:
    result = run(*RUN, "dataset.path=leaky", "output_dir=leaky-run")
    assert "rows also stand in a later split: leaky/train.jsonl:" in result.out
    result = run(*RUN, "dataset.path=leaky", "dataset.on_leak=drop", "output_dir=dropped")
    assert report("dropped")["data"]["train"]["rows"] <= 26
    result = distillkit(*RUN, "dataset.path=leaky", "dataset.on_leak=refuse", "output_dir=leak-refused")
    assert result.code == 2
    assert "dataset.on_leak=drop leaves them out of the earlier split" in result.err
    assert not Path("leak-refused").exists()


def test_the_cache_is_used_again_and_may_be_elsewhere() -> None:
    words = [*RUN, "dataset.path=data", "task.max_length=31", "output_dir=cache-run"]
    run(*words)
    before = cached()
    run(*words, "overwrite=true", "train.learning_rate=0.001")
    assert cached() == before
    elsewhere = [*RUN, "dataset.path=data", "dataset.cache=own-cache", "output_dir=cache-own"]
    run(*elsewhere)
    assert len(list(Path("own-cache").glob("*/rows.arrow"))) == 2
    assert cached() == before
    again = run(*elsewhere[:-2], "dataset.cache=false", "dataset.num_workers=0", "output_dir=cache-own")
    assert "already finished" in again.out  # where rows are cached is no other run


STREAM = ["dataset.train=mixed.jsonl", "dataset.streaming=true", "dataset.window=8", "dataset.on_bad_row=skip"]


def test_training_rows_are_streamed() -> None:
    words = [*STREAM, "dataset.validation_rows=8", "dataset.labels=[bad,good]", "output_dir=streamed"]
    before = cached()
    result = run(*RUN, *words, "train.max_steps=5")
    assert "validation: the first 8 rows of the training files" in result.out
    assert "a stream of rows, 8 at a time" in result.out
    assert "train, rows 17 to 24: 3 of 8 rows skipped: mixed.jsonl:21: label 'goood'" in result.out
    assert "train: 25 rows read, 3 skipped, 0 left out" in result.out
    data = report("streamed")["data"]
    assert (data["train"]["rows"], data["train"]["encoded"], data["train"]["bad"]) == (25, 22, 3)
    assert data["validation"]["encoded"] == 8
    losses = [event for event in events(Path("streamed")) if event["event"] == "train"]
    assert losses[-1]["epoch"] == 1.0  # 8, 5, 8 and 1 rows, and 8 again
    assert len(cached() - before) == 1  # the validation split


REFUSED = {
    "steps": ([*STREAM, "dataset.labels=[bad,good]", "train.max_steps=null"], "train.max_steps: a stream does not"),
    "classes": (STREAM, "dataset.labels: the classes of a stream are not known before its end; list them: "),
    "no folder": (["dataset.path=nowhere"], "dataset.path: no such folder: nowhere"),
    "nothing in it": (["dataset.path=student"], "dataset.path: no files of a split in student: "),
    "template": (
        ["dataset.path=data", "dataset.template={text: '{sentence}'}"],
        "dataset.template.text: no column 'sentence' in data/train.jsonl; its columns are: text, label",
    ),
    "filter": (
        ["dataset.path=data", "dataset.filter={lang: en}"],
        "dataset.filter.lang: no column 'lang' in data/train",
    ),
    "policy": (["dataset.path=data", "dataset.on_bad_row=drop"], "dataset.on_bad_row: unknown choice 'drop'"),
    "share": (["dataset.path=data", "dataset.fraction=2"], "dataset.fraction: must be above 0 and at most 1, got 2"),
    "cache": (["dataset.path=data", "dataset.cache=mixed.jsonl"], "dataset.cache: cannot write to mixed.jsonl"),
    "column": (
        ["dataset.path=data", "dataset.columns.text=[sentence,review]"],
        "dataset.columns.text: no column 'sentence' or 'review' in data/train.jsonl; its columns are: text, label",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_settings_that_do_not_fit_cost_one_line(case: str) -> None:
    words, expected = REFUSED[case]
    result = distillkit(*RUN, *words, "output_dir=never")
    assert (result.code, result.err.count("\n")) == (2, 1), result
    assert expected in result.err
    assert not Path("never").exists()
