"""The last pass: what filters keep is written whole or not at all, the same for any cut of the stream, and counted."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from distillkit.data.described import DESCRIPTION
from distillkit.data.files import FileDataset
from distillkit.data.rows import Rows
from distillkit.data.sealed import unsealed
from distillkit.errors import UserError
from distillkit.generation import refine as module
from distillkit.generation.filters.base import Filter, Given
from distillkit.generation.filters.best_of import BestOf
from distillkit.generation.filters.duplicates import Duplicates
from distillkit.generation.filters.empty import NotEmpty
from distillkit.generation.filters.finished import Finished
from distillkit.generation.filters.length import Length
from distillkit.generation.filters.near_duplicates import NearDuplicates
from distillkit.generation.filters.scores import LogProbability
from distillkit.generation.refine import Refined, refine
from distillkit.generation.writer import to_table

NOTHING = Given(Rows("data", {}))


def answers(count: int, samples: int = 2) -> list[dict]:
    return [
        {
            "prompt": f"question {index // samples}",
            "completion": "" if index % 11 == 0 else f"the answer is {index % 90}",
            "finished": index % 5 != 0,
            "source_row": index // samples,
            "log_prob": -1.0 - index % 3,
            "answer_tokens": 4,
        }
        for index in range(count)
    ]


def cut(rows: list[dict], size: int) -> Iterator[list[dict]]:
    return (rows[start : start + size] for start in range(0, len(rows), size))


def all_filters() -> dict[str, Filter | None]:
    return {
        "finished": Finished(),
        "empty": NotEmpty(),
        "length": None,
        "best": BestOf(LogProbability()),
        "duplicates": Duplicates(of="answer"),
    }


def passed(folder: Path, rows: list[dict], filters: dict[str, Filter | None], size: int = 7, **facts) -> Refined:
    return refine(cut(rows, size), filters, folder / "pseudo", to_table(rows[:50]).schema, NOTHING, facts)


def read(folder: Path) -> list[dict]:
    paths = sorted((folder / "pseudo").glob("*.parquet"))
    return [row for path in paths for row in pyarrow.parquet.read_table(path).to_pylist()]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def expected(rows: list[dict]) -> list[dict]:
    """What `all_filters` keep, written as one would by hand."""
    rows = [row for row in rows if row["finished"] and row["completion"]]
    best: dict[int, dict] = {}
    for row in rows:
        if row["source_row"] not in best or row["log_prob"] > best[row["source_row"]]["log_prob"]:
            best[row["source_row"]] = row
    kept: dict[str, dict] = {}
    for row in best.values():
        kept.setdefault(row["completion"], row)
    return list(kept.values())


def test_rows_pass_through_the_filters_in_order_and_are_counted(tmp_path):
    rows = answers(400)
    found = passed(tmp_path, rows, all_filters(), teacher="t")
    assert read(tmp_path) == expected(rows)
    assert list(found.rejected) == ["finished", "empty", "best", "duplicates"]
    assert found.rejected["finished"] == 80
    assert found.rejected["empty"] == len([row for row in rows if row["finished"] and not row["completion"]])
    assert found.generated == found.kept + sum(found.rejected.values()) == 400
    described = unsealed((tmp_path / "pseudo" / DESCRIPTION).read_bytes())
    assert list(described.pop("files")) == ["part-00000.parquet"]
    assert described == {"teacher": "t", **found.counts()}
    assert found.shown == expected(rows)[:5]


def test_the_first_rejects_of_each_filter_are_shown_with_the_reason(tmp_path):
    passed(tmp_path, answers(400), all_filters())
    lines = [json.loads(line) for line in (tmp_path / "rejected.jsonl").read_text().splitlines()]
    assert [line["filter"] for line in lines] == [name for name in all_filters() if name != "length" for _ in range(5)]
    assert lines[0] == {"filter": "finished", "reason": "cut off (length)", "row": answers(1)[0]}


@pytest.mark.parametrize("block", [1, 16, 1000])
def test_the_result_does_not_depend_on_how_the_stream_is_cut(tmp_path, monkeypatch, block):
    rows, found = answers(300, samples=3), []
    for size in (1, 10, 300):
        passed(tmp_path / str(size), rows, all_filters(), size)
        found.append(contents(tmp_path / str(size)))
    monkeypatch.setattr(module, "BLOCK_ROWS", block)
    passed(tmp_path / "small", rows, all_filters())
    assert found[0] == found[1] == found[2]
    assert read(tmp_path / "small") == read(tmp_path / "1") == expected(rows)


def test_samples_of_a_prompt_are_judged_together_wherever_a_block_would_end(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BLOCK_ROWS", 4)
    seen: list[list[int]] = []

    class Watch(Filter):
        def judge(self, rows):
            seen.append([row["source_row"] for row in rows])
            return [None] * len(rows)

    passed(tmp_path, answers(33, samples=3), {"watch": Watch()})
    assert [len(block) for block in seen] == [6] * 5 + [3]
    assert all(set(one).isdisjoint(other) for one, other in pairwise(seen))


def test_rows_without_a_prompt_are_judged_in_blocks_too(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BLOCK_ROWS", 4)
    sizes: list[int] = []

    class Watch(Filter):
        def judge(self, rows):
            sizes.append(len(rows))
            return [None] * len(rows)

    passed(tmp_path, [{"text": f"text {index}", "label": "a"} for index in range(10)], {"watch": Watch()})
    assert sizes == [4, 4, 2]


def test_large_results_are_cut_into_files(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BLOCK_ROWS", 8)
    monkeypatch.setattr(module, "PART_ROWS", 32)
    rows = answers(100)
    passed(tmp_path, rows, {})
    paths = sorted((tmp_path / "pseudo").glob("*.parquet"))
    assert [pyarrow.parquet.read_metadata(path).num_rows for path in paths] == [32, 32, 32, 4]
    assert [pyarrow.parquet.read_metadata(path).num_row_groups for path in paths] == [4, 4, 4, 1]
    assert read(tmp_path) == rows


def test_nothing_is_left_behind_by_a_pass_that_fails_and_what_was_there_stays(tmp_path):
    passed(tmp_path, answers(20), {})
    before = contents(tmp_path)

    def broken() -> Iterator[list[dict]]:
        yield answers(2000)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        refine(broken(), {}, tmp_path / "pseudo", to_table(answers(20)).schema, NOTHING, {})
    assert contents(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["pseudo"]
    passed(tmp_path, answers(30), all_filters())
    assert read(tmp_path) == expected(answers(30))


def test_what_a_killed_pass_left_is_cleared(tmp_path):
    (tmp_path / "pseudo.partial").mkdir(parents=True)
    (tmp_path / "pseudo.partial/part-00007.parquet").write_text("half")
    passed(tmp_path, answers(20), {})
    assert read(tmp_path) == answers(20)
    assert not (tmp_path / "pseudo.partial").exists()


def test_no_row_left_names_the_filter_and_what_to_do(tmp_path):
    rows = [row | {"finished": False} for row in answers(30)]
    with pytest.raises(UserError) as error:
        passed(tmp_path, rows, {"empty": NotEmpty(), "finished": Finished()})
    line = "generate.filters.finished: no row is left: 27 of 30 were rejected by it, 3 by empty"
    assert str(error.value) == f"{line}; raise generate.max_new_tokens"
    with pytest.raises(UserError, match=r"^generate\.split: the teacher was asked about no row"):
        refine([], {}, tmp_path / "pseudo", pyarrow.schema([]), NOTHING, {})
    assert not list(tmp_path.iterdir())


def test_what_a_filter_refuses_is_told_by_its_key(tmp_path):
    rows = [{"prompt": "a", "completion": "b"}]
    with pytest.raises(UserError, match=r"^generate\.filters\.size: min_tokens, max_tokens: nobody counts tokens here"):
        passed(tmp_path, rows, {"size": Length(max_tokens=3)})


def test_classes_and_their_names_go_through(tmp_path):
    rows = [{"text": f"text {i}", "label": "ab"[i % 2], "teacher_logits": [1.0, 2.0]} for i in range(6)]
    table = to_table(rows, ["b", "a"])
    refine([table.to_pylist()], {"empty": NotEmpty()}, tmp_path / "pseudo", table.schema, NOTHING, {})
    columns = {"text": "text", "label": "label"}
    loaded = FileDataset(train=str(tmp_path / "pseudo/*.parquet"), columns=columns).load()
    assert loaded.labels == ["b", "a"]
    assert loaded.split("train")["label"][:] == ["a", "b"] * 3


def test_memory_does_not_grow_with_the_rows(tmp_path):
    """With the filters that remember rows, 100,000 of them take less than 200 MiB: what grows is what is remembered."""
    filters: dict[str, Filter | None] = {"empty": NotEmpty(), "duplicates": Duplicates(), "near": NearDuplicates()}

    def many(count: int) -> Iterator[list[dict]]:
        for start in range(0, count, 500):
            yield [
                {"prompt": f"q{i} w{i * 7} {i * 13}", "completion": f"a{i} b{i * 3} c{i * 5}"}
                for i in range(start, start + 500)
            ]

    schema = to_table(next(many(500))).schema
    peaks = {}
    for count in (1_000, 4_000):
        tracemalloc.start()
        found = refine(many(count), filters, tmp_path / "pseudo", schema, NOTHING, {})
        peaks[count] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert found.kept == count
    growth = (peaks[4_000] - peaks[1_000]) / 3_000  # bytes a row
    assert peaks[1_000] + 99_000 * growth < 200 * 2**20
