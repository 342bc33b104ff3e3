"""Training rows that are streamed: the same rows, batches and weights as of a whole split, in bounded memory."""

from __future__ import annotations

import gzip
import json
import random
import tracemalloc
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value, load_dataset

from distillkit.data import hub
from distillkit.data.blocks import read_windows
from distillkit.data.cursors import open_file
from distillkit.data.encode import encode
from distillkit.data.encode_stream import EncodedStream, encode_training
from distillkit.data.files import FileDataset
from distillkit.data.hub import HubDataset
from distillkit.data.labels import label_names
from distillkit.data.mixed import MixedDataset
from distillkit.data.rows import Rows
from distillkit.errors import UserError
from distillkit.schema import TrainSettings
from distillkit.training.checkpoint import newest_checkpoint
from distillkit.training.loop import fit
from tests.tiny import LABELS, classifier, events, language_model, rows, tokenizer, train, training, write_jsonl

RECORDS = [{"text": f"text {number} " + "x" * (1 + number % 7), "n": number} for number in range(53)]


def write(path: Path, records: list[dict]) -> Path:
    """Write records in the format of the ending; text formats with blank lines between them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ending = path.name.removesuffix(".gz").rpartition(".")[2]
    table = pa.Table.from_pylist(records)
    if ending == "parquet":
        pyarrow.parquet.write_table(table, path, row_group_size=6)
        return path
    if ending in ("arrow", "arrows"):
        path = path.with_suffix(".arrow")
        make = pa.ipc.new_stream if ending == "arrows" else pa.ipc.new_file
        with make(str(path), table.schema) as writer:
            writer.write_table(table, max_chunksize=5)
        return path
    if ending in ("csv", "tsv"):
        comma = "," if ending == "csv" else "\t"
        lines = [comma.join(records[0]), *(comma.join(f'"{value}\n"' for value in r.values()) for r in records)]
    elif ending == "txt":
        lines = [line for record in records for line in (record["text"], "")]
    else:
        lines = [line for record in records for line in (json.dumps(record), "")]
    content = ("\n".join(lines) + "\n").encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


FORMATS = ["jsonl", "jsonl.gz", "json", "txt", "txt.gz", "csv", "csv.gz", "tsv", "parquet", "arrow", "arrows"]


@pytest.mark.parametrize("ending", FORMATS)
def test_windows_have_the_rows_of_all_files_in_order_from_any_record_on(tmp_path, ending):
    sizes, start = (20, 1, 32), 0
    paths = []
    for number, size in enumerate(sizes):
        paths.append(write(tmp_path / f"part-{number}" / f"rows.{ending}", RECORDS[start : start + size]))
        start += size
    parts = [lambda path=path: open_file(path, {"text"}, lenient=False) for path in paths]
    for size, begin in ((7, 0), (7, 13), (53, 0), (1, 21), (100, 52), (4, 53), (4, 90), (6, 6)):
        found = list(read_windows(parts, begin, size))
        texts = [[r["text"].strip() for block in blocks for r in block.table.to_pylist()] for blocks in found]
        wanted = [r["text"] for r in RECORDS[begin:]]
        assert texts == [wanted[first : first + size] for first in range(0, len(wanted), size)]
        assert all(sum(block.size for block in blocks) == len(own) for blocks, own in zip(found, texts, strict=True))


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_places_are_those_of_a_whole_split(tmp_path, ending):
    path = write(tmp_path / f"train.{ending}", RECORDS)
    whole = FileDataset(train=str(path)).load()
    streamed = FileDataset(train=str(path), streaming=True, window=9).load()
    places = [window.place(index) for window in windows(streamed) for index in range(len(window.table))]
    assert places == [whole.where("train", index) for index in range(53)]


def windows(loaded: Rows, record: int = 0) -> list:
    assert loaded.stream is not None
    return list(loaded.stream.windows(record))


def texts_of(loaded: Rows) -> list[dict]:
    return [row for window in windows(loaded) for row in window.table.to_list()]


PREPARED = {
    "filter": {"filter": {"n": {"min": 10, "not": 20}}},
    "template": {"template": {"text": "{n}: {text}"}, "columns": {"text": "text"}},
    "fraction": {"fraction": 0.4},
    "columns": {"columns": {"text": ["body", "text"], "id": "n"}},
    "leaks": {"on_leak": "drop"},
    "all": {"filter": {"n": {"max": 40}}, "template": {"text": "{text}"}, "fraction": 0.7, "on_leak": "drop"},
}


@pytest.mark.parametrize("case", PREPARED)
def test_rows_are_prepared_as_those_of_a_whole_split(tmp_path, case):
    settings = PREPARED[case]
    files = {"train": str(write(tmp_path / "train.jsonl", RECORDS))}
    files["validation"] = str(write(tmp_path / "validation.jsonl", [{**r, "n": 15} for r in RECORDS[5:25:3]]))
    whole = FileDataset(**files, **settings).load()
    streamed = FileDataset(**files, **settings, streaming=True, window=8).load()
    assert len(windows(streamed)) == 7
    assert texts_of(streamed) == whole.splits["train"].to_list()
    assert streamed.splits["validation"].to_list() == whole.splits["validation"].to_list()
    records = np.concatenate([window.records for window in windows(streamed)])
    assert all(RECORDS[r]["text"] in row["text"] for r, row in zip(records, texts_of(streamed), strict=True))


def labelled(folder: Path, count: int = 100) -> dict[str, str]:
    return {"train": str(write_jsonl(folder / "train.jsonl", rows(count, 1)))}


def streamed(files: dict, window: int, task, **settings) -> EncodedStream:
    loaded = FileDataset(**files, labels=LABELS, streaming=True, window=window, **settings).load()
    found = encode_training(loaded, task, tokenizer(), LABELS if task.has_classes else None)
    assert isinstance(found, EncodedStream)
    return found


def whole(files: dict, task):
    return encode(FileDataset(**files, labels=LABELS).load(), "train", task, tokenizer(), LABELS)


def drawn(data: EncodedStream, steps: int, start: int = 0, place=None, **settings) -> list[list[int]]:
    """Return the rows of the source that each step is made of."""
    plan = data.plan(TrainSettings(batch_size=8, max_steps=start + steps, **settings))
    plan.start(place)
    found = [plan.rows(step) for step in range(start, start + steps)]
    plan.close()
    return [rows.origins[chosen].tolist() for rows, chosen in found]


def test_a_window_for_all_rows_gives_the_batches_of_the_whole_split(tmp_path):
    files = labelled(tmp_path)
    plan = whole(files, classifier().task).plan(TrainSettings(batch_size=8, max_steps=40))
    found = drawn(streamed(files, 1000, classifier().task), 40)
    assert found == [plan.rows(step)[1].tolist() for step in range(40)]  # three epochs


@pytest.mark.parametrize("group", [True, False])
def test_an_epoch_has_every_row_once_window_by_window(tmp_path, group):
    data = streamed(labelled(tmp_path), 32, classifier().task)
    found = drawn(data, 26, group_by_length=group)
    assert [len(batch) for batch in found[:12]] == [8] * 12
    for first in (0, 13):  # 32 + 32 + 32 + 4 rows
        epoch = found[first : first + 13]
        for window in range(4):
            batches = epoch[4 * window : 4 * window + 4]
            assert sorted(chain(*batches)) == list(range(32 * window, min(32 * window + 32, 100)))
    assert found[:13] != found[13:]
    assert found == drawn(data, 26, group_by_length=group)
    assert found[:4] != drawn(data, 4, seed=1, group_by_length=group)


def test_any_step_is_found_again_at_its_place(tmp_path):
    """Long texts give several rows, empty windows none: how many batches there are is seen on the way."""
    task = language_model().task
    made = [{"text": "word " * (3 if number % 3 else 90), "n": number} for number in range(60)]
    files = {"train": str(write_jsonl(tmp_path / "train.jsonl", made))}
    data = streamed(files, 8, task, filter={"n": {"not": list(range(24, 40))}})
    plan = data.plan(TrainSettings(batch_size=8, max_steps=60))
    expected, places = [], []
    for step in range(60):
        encoded, chosen = plan.rows(step)
        expected.append(encoded.origins[chosen].tolist())
        places.append(plan.place(step))
    assert data.counts.rows == 60
    assert set(chain(*expected)) == {*range(24), *range(40, 60)}
    assert plan.epoch(60) >= 1.0
    plan.close()
    for step in (0, 1, 5, 9, 17, 33, 59):
        assert drawn(data, 60 - step, step, places[step]) == expected[step:], step
    plan = data.plan(TrainSettings(batch_size=8, max_steps=60))
    afterwards = [(plan.rows(step), plan.place(step + 1))[1] for step in range(20)]  # before the next one is drawn
    plan.close()
    for step in range(1, 20):
        assert drawn(data, 3, step, afterwards[step - 1]) == expected[step : step + 3], step


def weights(live) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in live.model.state_dict().items()}


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(ours[name], theirs[name]) for name in ours | theirs)


def test_a_window_for_all_rows_trains_the_weights_of_the_whole_split(tmp_path):
    files, found = labelled(tmp_path, 40), []
    for name, data in (
        ("whole", whole(files, classifier().task)),
        ("stream", streamed(files, 64, classifier().task)),
    ):
        student = classifier(layers=1, dropout=0.3)
        run = training(tmp_path / name, student, classifier(seed=7), data, max_steps=12, evaluate_every=5)
        run.evaluate = None
        fit(run)
        found.append((weights(student), [event["loss"] for event in events(tmp_path / name)]))
    assert found[0][1] == found[1][1]
    assert same(found[0][0], found[1][0])


@pytest.mark.parametrize("kind", [classifier, language_model])
def test_a_resumed_run_ends_where_the_whole_one_ends(tmp_path, kind):
    files = labelled(tmp_path, 50)
    data, held = streamed(files, 16, kind().task), whole(files, classifier().task)
    found = []
    for name in ("whole", "resumed"):
        student = kind(layers=1)
        run = training(tmp_path / name, student, kind(seed=7), data, max_steps=17, checkpoint_every=5, log_every=1)
        run.evaluate = None
        if name == "resumed":
            run.resume_from, skipped = newest_checkpoint(tmp_path / "whole" / "checkpoints")
            assert [run.resume_from, skipped] == [tmp_path / "whole" / "checkpoints" / "step-000015", []]
        fit(run)
        found.append((weights(student), events(tmp_path / name)[-2:], data.counts))
    assert len(held) == 50 == found[0][2].rows == found[1][2].rows
    assert found[0][1] == found[1][1]
    assert same(found[0][0], found[1][0])


def test_packed_rows_are_streamed(tmp_path):
    data = streamed(labelled(tmp_path), 32, language_model().task).packing()
    plan = data.plan(TrainSettings(batch_size=8, max_steps=2))
    encoded, chosen = plan.rows(1)
    plan.close()
    batch = encoded.batch(chosen)
    assert batch.segments is not None
    assert len(batch.inputs["input_ids"]) < len(chosen)


BROKEN = ['{"text": "so good", "label": "good"', "[1]", '{"text": 3, "label": "bad"}']


def with_broken(folder: Path) -> dict[str, str]:
    """Write 60 lines, of which 40, 50 and 55 are broken, 7 has no text and 58 an unknown label."""
    lines = [json.dumps(row) for row in rows(60, 1)]
    lines[39], lines[49], lines[54] = BROKEN
    lines[6], lines[57] = json.dumps({"text": "", "label": "bad"}), json.dumps({"text": "so", "label": "ugly"})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n")
    return {"train": str(folder / "train.jsonl")}


def test_bad_rows_are_left_out_named_and_counted(tmp_path, capsys):
    files = with_broken(tmp_path)
    data = streamed(files, 16, classifier().task, on_bad_row="skip")
    plan = data.plan(TrainSettings(batch_size=8, max_steps=9))
    found = [rows.origins[chosen].tolist() for rows, chosen in map(plan.rows, range(8))]
    plan.close()
    assert sorted(chain(*found)) == sorted(set(range(60)) - {6, 39, 49, 54, 57})
    assert (data.counts.rows, data.counts.encoded, data.counts.bad) == (60, 55, 5)
    said = capsys.readouterr().out.replace("\n", "")
    assert f"{files['train']}:7: text is empty" in said
    assert f"train, rows 33 to 48: 1 of 16 rows skipped: {files['train']}:40: not valid JSON" in said
    assert "55" not in said.split("rows skipped")[-1]  # later ones are only counted
    assert "60 rows read, 5 skipped" in data.summary()


def test_a_bad_row_ends_the_run_when_it_is_reached(tmp_path):
    lines = [json.dumps(row) for row in rows(60, 1)]
    lines[40] = "{"
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    data = streamed({"train": str(tmp_path / "train.jsonl")}, 16, classifier().task)
    with pytest.raises(UserError, match=r"train\.jsonl:41: not valid JSON"):
        train(tmp_path, classifier(layers=1), classifier(seed=7), data, max_steps=20, evaluate_every=99)


def test_broken_records_of_a_csv_file_are_left_out(tmp_path):
    lines = ["text,label", *(f"text {number},good" for number in range(30))]
    lines[5], lines[12], lines[30] = "one", "a,b,c,d", "x,y,z"
    (tmp_path / "train.csv").write_text("\n".join(lines))
    loaded = FileDataset(train=str(tmp_path / "train.csv"), streaming=True, window=6, on_bad_row="skip").load()
    held = FileDataset(train=str(tmp_path / "train.csv"), on_bad_row="skip").load()
    assert [row["text"] for row in texts_of(loaded)] == held.splits["train"]["text"][:]
    found = windows(loaded)
    assert sum(window.bad for window in found) == 3
    places = [window.place(index) for window in found for index in range(len(window.table))]
    assert places == [held.where("train", index) for index in range(27)]
    notes = " ".join(note for window in found for note in window.notes.values())
    assert "row 5: 1 values instead of 2" in notes
    assert "row 30: 3 values instead of 2" in notes
    again = windows(loaded, found[1].end)
    assert [w.table["text"][:] for w in again] == [w.table["text"][:] for w in found[2:]]


def test_files_of_different_columns_and_kinds(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [{"text": "2024-01-02", "label": 1}] * 4)
    write_jsonl(tmp_path / "b.jsonl", [{"text": "so", "text_pair": "la", "label": None}] * 4)
    write_jsonl(tmp_path / "c.jsonl", [{"label": 2, "other": {"a": 1}}] * 4)
    files = {"train": [str(tmp_path / f"{name}.jsonl") for name in "abc"]}
    loaded = FileDataset(**files, streaming=True, window=4, labels=["1", "2"], on_bad_row="skip").load()
    assert [row.get("label") for row in texts_of(loaded)] == ["1"] * 4 + [None] * 4 + ["2"] * 4
    data = encode_training(loaded, classifier().task, tokenizer(), ["1", "2"])
    plan = data.plan(TrainSettings(batch_size=4, max_steps=2))
    assert [len(plan.rows(step)[1]) for step in range(2)] == [4, 4]
    plan.rows(2)  # the third window has no texts; this is the first of the next epoch
    assert plan.epoch(3) == 1.0
    plan.close()
    assert data.counts.bad == 4


def test_the_first_rows_become_the_validation_split(tmp_path):
    files = {"train": [str(write(tmp_path / "a.jsonl", RECORDS[:10])), str(write(tmp_path / "b.jsonl", RECORDS[10:]))]}
    loaded = FileDataset(**files, streaming=True, window=16, validation_rows=12).load()
    assert loaded.splits["validation"]["text"][:] == [r["text"] for r in RECORDS[:12]]
    assert loaded.where("validation", 11) == f"{files['train'][1]}:3"
    assert loaded.stream is not None
    assert loaded.stream.start == 12
    later = [row["text"] for window in windows(loaded, 12) for row in window.table.to_list()]
    assert later == [r["text"] for r in RECORDS[12:]]
    assert loaded.notes == ("validation: the first 12 rows of the training files",)
    own = FileDataset(**files, validation=files["train"][0], streaming=True, validation_rows=12, on_leak="ignore")
    assert len(own.load().splits["validation"]) == 10


def test_a_hub_dataset_is_streamed(tmp_path, monkeypatch):
    features = Features({"sentence": Value("string"), "label": ClassLabel(names=LABELS)})
    made = [{"sentence": r["text"], "label": LABELS.index(r["label"])} for r in rows(50, 1)]
    Dataset.from_list(made, features=features).to_parquet(tmp_path / "train.parquet", batch_size=7)

    def load(path, config, split, revision, streaming=False):
        if split != "train":
            raise ValueError(f'Unknown split "{split}".')
        files = str(tmp_path / "train.parquet")
        return load_dataset("parquet", data_files=files, split="train", streaming=streaming, cache_dir=str(tmp_path))

    monkeypatch.setattr(hub, "load_dataset", load)
    monkeypatch.setattr(hub, "READ", 9)
    loaded = HubDataset("some/where", columns={"text": "sentence", "label": "label"}, streaming=True, window=16).load()
    assert loaded.labels == LABELS
    wanted = [{"text": row["sentence"], "label": LABELS[row["label"]]} for row in made]
    assert texts_of(loaded) == wanted
    assert [row for w in windows(loaded, 20) for row in w.table.to_list()] == wanted[20:]
    assert loaded.where("train", 3) == "train, row 4"


def refuses(match: str, **settings) -> None:
    with pytest.raises(UserError, match=match):
        FileDataset(**{"streaming": True, "train": "train.jsonl", **settings}).load()


def test_what_needs_the_whole_split_costs_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "train.jsonl", rows(20))
    write_jsonl(tmp_path / "broken.jsonl", [{"text": ""}])
    (tmp_path / "rows.json").write_text(json.dumps(rows(3)))
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "no.jsonl.gz").write_text("so")
    refuses(r"dataset\.limit: no sample can be drawn from a stream", limit=5)
    refuses(r"dataset\.validation_share: no share .* dataset\.validation_rows=N", validation_share=0.1)
    refuses(r"dataset\.window: must be at least 1, got 0", window=0)
    refuses(r"dataset\.validation_rows: only a stream", streaming=False, validation_rows=3)
    refuses(r"rows\.json: a JSON array can only be read as a whole", train="rows.json")
    refuses(r"come to nothing; it is empty", train="empty.jsonl")
    refuses(r"come to nothing; every row is bad", filter={"label": "ugly"})
    refuses(r"dataset\.columns\.text: no column 'body' in train\.jsonl", columns={"text": "body"})
    refuses(r"no\.jsonl\.gz: cannot be read: Not a gzipped file", train="no.jsonl.gz")
    loaded = FileDataset(train="train.jsonl", streaming=True, limit={"validation": 3}).load()
    with pytest.raises(UserError, match=r"dataset\.labels: the classes of a stream are not known"):
        label_names(loaded)
    with pytest.raises(UserError, match=r"dataset\.streaming: the training rows of .* are a stream"):
        loaded.split("train")
    data = streamed({"train": "train.jsonl"}, 8, classifier().task)
    with pytest.raises(UserError, match=r"train\.max_steps: a stream does not tell"):
        data.plan(TrainSettings())
    with pytest.raises(UserError, match=r"dataset\.window: 8 rows are less than a batch of 9"):
        data.plan(TrainSettings(batch_size=9, max_steps=1))
    mixed = MixedDataset({"a": {"dataset": FileDataset(train="train.jsonl", streaming=True)}})
    with pytest.raises(UserError, match=r"dataset\.sources\.a: a stream cannot be mixed"):
        mixed.load()


def test_recorded_logits_are_streamed_or_left_out(tmp_path):
    made = [row | {"teacher_logits": [float(number), -1.0]} for number, row in enumerate(rows(20))]
    path = str(write_jsonl(tmp_path / "train.jsonl", made))
    loaded = FileDataset(train=path, streaming=True, window=8, labels=LABELS).load()
    data = encode_training(loaded, classifier().task, tokenizer(), LABELS)
    plan = data.plan(TrainSettings(batch_size=8, max_steps=3))
    encoded, chosen = plan.rows(2)
    plan.close()
    recorded = encoded.batch(chosen).recorded
    assert recorded is not None
    assert recorded[:, 0].tolist() == encoded.origins[chosen].tolist()
    left = loaded.without("teacher_logits")
    assert {tuple(row) for row in texts_of(left)} == {("text", "label")}
    assert left.example("train").column_names == ["text", "label"]


def test_a_file_that_ends_too_early_is_named(tmp_path):
    path = write(tmp_path / "train.jsonl.gz", [{"text": f"{random.Random(n).random()}"} for n in range(2000)])
    path.write_bytes(path.read_bytes()[:-400])
    loaded = FileDataset(train=str(path), streaming=True, window=64).load()
    with pytest.raises(UserError, match=r"train\.jsonl\.gz: cannot be read: Compressed file ended"):
        windows(loaded)
    path.unlink()
    with pytest.raises(UserError, match=r"train\.jsonl\.gz: cannot be read: .*No such file"):
        windows(loaded)


def test_memory_does_not_grow_with_the_rows(tmp_path):
    """Arrow's memory is sampled at every step; Python's peak is traced."""
    task, source, peaks = classifier().task, random.Random(0), {}
    line = json.dumps({"text": "so very good " * 8, "label": "good"})
    for count in (600, 6_000):
        path = tmp_path / f"{count}.jsonl"
        path.write_text("".join(f"{line}\n" for _ in range(count)))
        data = streamed({"train": str(path)}, 200, task)
        plan = data.plan(TrainSettings(batch_size=50, max_steps=count // 50))
        arrow = 0
        tracemalloc.start()
        for step in range(plan.steps):
            encoded, chosen = plan.rows(step)
            arrow = max(arrow, pa.total_allocated_bytes())
            encoded.batch(chosen[:2], (source.randrange(9),))
        peaks[count] = np.array([arrow, tracemalloc.get_traced_memory()[1]])
        tracemalloc.stop()
        plan.close()
        assert data.counts.encoded == count
    assert (peaks[6_000] < 1.2 * peaks[600] + (1 << 17)).all(), peaks


def test_nothing_is_read_ahead_of_the_window_after_next(tmp_path):
    data = streamed(labelled(tmp_path, 100), 10, classifier().task)
    assert data.rows.first.end == 10
    assert [window.end for window in islice(data.rows.windows(0), 2)] == [10, 20]
