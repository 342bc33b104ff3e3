"""Bad rows: refused or skipped, counted, and shown with their places."""

from __future__ import annotations

from pathlib import Path

import pytest

from distillkit.data.encode import encode
from distillkit.data.files import FileDataset
from distillkit.errors import UserError
from distillkit.reporting import console
from distillkit.tasks.sequence_classification import SequenceClassification
from tests.tiny import LABELS, tokenizer

TASK = SequenceClassification(max_length=8)
LINES = """\
{"text": "fine", "label": "good"}
{"text": "so so", "label": "god"}

{"label": "bad"}
{"text": " ", "label": "bad"}
{"text": "a very long text that does not fit into a row", "label": null}
{"text": "sad", "label": "bad"}
"""
BROKEN = '{"text": "fi\n{"text": ["a"], "label": "bad"}\n["a"]\n'


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr("distillkit.data.encode.notice", lines.append)
    assert console.notice is not lines.append
    return lines


def write(path: Path, text: str | bytes) -> str:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def test_by_default_the_first_is_refused_and_the_others_counted(tmp_path):
    rows = FileDataset(train=write(tmp_path / "a.jsonl", LINES)).load()
    with pytest.raises(UserError) as caught:
        encode(rows, "train", TASK, tokenizer(), LABELS)
    assert str(caught.value) == (
        f"{tmp_path}/a.jsonl:2: label 'god' is not among the declared ones; did you mean 'good'?; 2 more of 6 rows are "
        f"bad, such as {tmp_path}/a.jsonl:4: text is missing; dataset.on_bad_row=skip leaves bad rows out"
    )


def test_skipped_rows_are_named_and_counted(tmp_path, said):
    rows = FileDataset(train=write(tmp_path / "a.jsonl", LINES), on_bad_row="skip").load()
    data = encode(rows, "train", TASK, tokenizer(), LABELS)
    assert data.origins.tolist() == [0, 4, 5]
    assert data.batch([0, 1, 2]).labels.tolist() == [1, -100, 0]
    assert said == [
        f"train: 3 of 6 rows skipped: {tmp_path}/a.jsonl:2: label 'god' is not among the declared ones; did you mean "
        f"'good'?; {tmp_path}/a.jsonl:4: text is missing; {tmp_path}/a.jsonl:5: text is empty",
        "train: 16.7% of the rows are longer than task.max_length and were cut (1)",
    ]
    counts = data.counts
    assert (counts.rows, counts.encoded, counts.bad, counts.left_out, counts.truncated) == (6, 3, 3, 0, 1)
    again = encode(rows, "train", TASK, tokenizer(), LABELS)  # from the cache
    assert again.counts == counts
    assert said[:2] == said[2:]


def test_records_that_cannot_be_read(tmp_path):
    path = write(tmp_path / "a.jsonl", LINES + BROKEN)
    with pytest.raises(UserError, match=r"a\.jsonl:8: not valid JSON"):
        FileDataset(train=path).load()
    rows = FileDataset(train=path, on_bad_row="skip").load()
    assert len(rows.splits["train"]) == 6
    assert rows.where("train", 5).endswith("a.jsonl:7")
    (note,) = rows.notes
    assert note.startswith(f"train: 3 of 9 rows skipped: {path}:8: not valid JSON (Unterminated")
    assert f"{path}:9: 'text' is list here and str in line 1; {path}:10: each line must hold one JSON object" in note


def test_rows_after_a_broken_record_keep_their_places(tmp_path):
    path = write(
        tmp_path / "a.jsonl", b'{"text": "a"}\n{"text": 1}\n\n{"text": "\xff"}\n{"text": "b"}\n{"text": "c"}\n'
    )
    rows = FileDataset(train=path, on_bad_row="skip").load()
    assert rows.splits["train"]["text"][:] == ["a", "b", "c"]
    assert [rows.where("train", index) for index in range(3)] == [f"{path}:1", f"{path}:5", f"{path}:6"]
    assert "not UTF-8 text" in rows.notes[0]


def test_the_kind_of_most_rows_decides(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"text": 1}\n{"text": "b"}\n{"text": "c"}\n')
    assert FileDataset(train=path, on_bad_row="skip").load().splits["train"]["text"][:] == ["b", "c"]


def test_columns_that_nobody_reads_may_be_of_any_kind(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"text": "a", "meta": {"x": 1}}\n{"text": "b", "meta": "none"}\n')
    assert FileDataset(train=path).load().splits["train"].to_dict() == {"text": ["a", "b"]}


def test_a_list_with_an_odd_value(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"tokens": ["a"]}\n{"tokens": [{"x": 1}]}\n{"tokens": ["b"]}\n')
    with pytest.raises(UserError, match=r"a\.jsonl:2: does not fit the rows before it"):
        FileDataset(train=path).load()
    assert FileDataset(train=path, on_bad_row="skip").load().splits["train"]["tokens"][:] == [["a"], ["b"]]


def test_ragged_csv(tmp_path):
    path = write(tmp_path / "a.csv", 'text,label\na,b\nc\n\n"d\ne",f\ng,h,i\nj,k\n')
    with pytest.raises(UserError, match="Expected 2 columns"):
        FileDataset(train=path).load()
    rows = FileDataset(train=path, on_bad_row="skip").load()
    assert rows.splits["train"]["text"][:] == ["a", "d\ne", "j"]
    assert f"{path}, row 2: 1 values instead of 2; {path}, row 4: 3 values instead of 2" in rows.notes[0]
    assert [rows.where("train", index) for index in range(3)] == [f"{path}, row {row}" for row in (1, 3, 5)]


def test_a_json_array(tmp_path):
    path = write(tmp_path / "a.json", '[{"text": "a"}, 3, {"text": "b"}]')
    with pytest.raises(UserError, match=r"a\.json, row 2: each line must hold"):
        FileDataset(train=path).load()
    rows = FileDataset(train=path, on_bad_row="skip").load()
    assert rows.splits["train"]["text"][:] == ["a", "b"]
    assert rows.where("train", 1) == f"{path}, row 3"


def test_nothing_but_bad_rows_is_refused(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"text": ""}\n{"text": " "}\n')
    rows = FileDataset(train=path, on_bad_row="skip").load()
    with pytest.raises(UserError, match=r"every row of the train split is bad: .*:1: text is empty"):
        encode(rows, "train", TASK, tokenizer(), None)
    with pytest.raises(UserError, match="every row of the train split is bad"):
        FileDataset(train=write(tmp_path / "b.jsonl", "x\ny\n"), on_bad_row="skip").load()


def test_an_unknown_policy_is_refused():
    with pytest.raises(UserError, match=r"dataset\.on_bad_row: unknown choice 'skp'; did you mean 'skip'"):
        FileDataset(train="a", on_bad_row="skp")
