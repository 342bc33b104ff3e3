"""Both forms in which answers are written become one."""

from __future__ import annotations

import pyarrow as pa
import pytest

from distillkit.data.answers import read_answers
from distillkit.data.files import FileDataset
from tests.tiny import write_jsonl

LISTED = [
    [{"text": "a", "answer_start": 1}, {"text": "b", "answer_start": 2}],
    [],
    None,
    [{"text": "c", "answer_start": 0}],
]
TURNED = [
    {"text": ["a", "b"], "answer_start": [1, 2]},
    {"text": [], "answer_start": []},
    None,
    {"text": ["c"], "answer_start": [0]},
]


def test_a_list_of_answers_becomes_lists_of_texts_and_starts():
    table = pa.table({"answers": pa.chunked_array([LISTED[:2], LISTED[2:]])})
    assert read_answers(table)["answers"].to_pylist() == TURNED
    assert read_answers(table.slice(1, 3))["answers"].to_pylist() == TURNED[1:]
    assert read_answers(read_answers(table))["answers"].to_pylist() == TURNED


@pytest.mark.parametrize("values", [[[], None, []], [["a"], None], [1, 2], TURNED])
def test_other_values_stay_what_they_are(values):
    found = read_answers(pa.table({"answers": pa.array(values), "text": ["x"] * len(values)}))
    expected = [TURNED[1] if value == [] else value for value in values]
    assert found["answers"].to_pylist() == expected
    assert read_answers(found.select(["text"])).column_names == ["text"]


def test_files_of_either_form_are_read_alike(tmp_path):
    rows = [{"question": "q", "context": "c a b", "answers": answers} for answers in (LISTED[0], TURNED[0])]
    loaded = [
        FileDataset(train=str(write_jsonl(tmp_path / f"{index}.jsonl", [row]))).load().split("train")[0]
        for index, row in enumerate(rows)
    ]
    assert loaded[0] == loaded[1]
