"""Soft labels: they are the teacher's own, and train reads them like any other rows."""

from __future__ import annotations

import json

import pytest
import torch

from distillkit.cache.shards import Shards
from distillkit.commands import generate_pseudo, train
from distillkit.data.files import FileDataset
from distillkit.data.mixed import MixedDataset
from distillkit.errors import UserError
from distillkit.generation.soft_labels import SoftLabels
from distillkit.generation.writer import to_table
from distillkit.models.live import LiveModel
from tests.pseudo import FILES, config
from tests.tiny import LABELS, classifier, events, rows, save, write_jsonl


def ask(generator: SoftLabels, teacher: LiveModel, data: FileDataset, start: int = 0, stop: int = 20) -> list[dict]:
    return generator.prepare(teacher.eval(), data.load(), teacher.task).answer(start, stop)


@pytest.fixture
def labelled(tmp_path) -> FileDataset:
    """Every third row has no label."""
    made = [row | {"label": None if index % 3 == 0 else row["label"]} for index, row in enumerate(rows(20))]
    return FileDataset(train=str(write_jsonl(tmp_path / "train.jsonl", made)), labels=LABELS)


@torch.no_grad()
def test_soft_labels_are_the_teachers_logits_row_for_row(labelled):
    teacher = classifier().eval()
    found = ask(SoftLabels(batch_size=3), teacher, labelled)
    source = labelled.load().split("train")
    assert [row["text"] for row in found] == source["text"][:]
    for row in found:
        alone = teacher.model(**teacher.tokenizer([row["text"]], return_tensors="pt")).logits[0]
        assert row["teacher_logits"] == pytest.approx(alone.tolist(), abs=1e-6)


@pytest.mark.parametrize("labels", ["keep", "fill", "replace"])
def test_hard_labels_are_kept_filled_in_or_replaced(labelled, labels):
    found = ask(SoftLabels(labels=labels), classifier(seed=5), labelled)
    own = labelled.load().split("train")["label"][:]
    answers = [LABELS[row["teacher_logits"].index(max(row["teacher_logits"]))] for row in found]
    filled = [answer if label is None else label for label, answer in zip(own, answers, strict=True)]
    assert any(label not in (None, answer) for label, answer in zip(own, answers, strict=True))
    assert [row["label"] for row in found] == {"keep": own, "fill": filled, "replace": answers}[labels]


def test_a_shard_is_answered_alone(labelled):
    whole = ask(SoftLabels(batch_size=3), classifier(), labelled)
    parts = [ask(SoftLabels(batch_size=3), classifier(), labelled, *ends) for ends in ((0, 7), (7, 20))]
    assert [row["text"] for part in parts for row in part] == [row["text"] for row in whole]


def test_the_order_of_the_classes_travels_with_the_logits(tmp_path):
    """A teacher whose classes are not in alphabetical order must not be read as if they were."""
    asked = [{"text": "a", "label": "neutral", "teacher_logits": [0.0, 1.0, 2.0]}, {"text": "b", "label": None}]
    asked[1]["teacher_logits"] = [3.0, 0.0, 0.0]
    Shards(tmp_path, 2, 2).write(0, to_table(asked, ["positive", "neutral", "negative"]))
    columns = {"text": "text", "label": "label", "teacher_logits": "teacher_logits"}
    rows = FileDataset(train=str(tmp_path / "*.parquet"), columns=columns).load()
    assert rows.labels == ["positive", "neutral", "negative"]
    assert rows.splits["train"]["label"][:] == ["neutral", None]

    original = write_jsonl(tmp_path / "original.jsonl", [{"text": "c", "label": "positive"}])
    sources = {"pseudo": {"dataset": FileDataset(train=str(tmp_path / "*.parquet"), columns=columns)}}
    sources["original"] = {"dataset": FileDataset(train=str(original))}
    assert MixedDataset(sources).load().labels == ["positive", "neutral", "negative"]
    sources["original"] = {"dataset": FileDataset(train=str(original), labels=["negative", "neutral", "positive"])}
    with pytest.raises(UserError, match=r"^dataset\.sources\.original: the classes are negative, neutral, positive"):
        MixedDataset(sources).load()


def test_learning_from_recorded_soft_labels_is_learning_from_the_teacher(tmp_path):
    save(classifier(), tmp_path / "teacher")
    save(classifier(layers=1, seed=3), tmp_path / "student")
    generate = {"_target_": "distillkit.generation.soft_labels.SoftLabels", "batch_size": 7}
    report = generate_pseudo.main(config(tmp_path, "soft", generate=generate))
    assert (report["rows"], report["generated"]) == (40, 40)
    described = json.loads((tmp_path / "soft/pseudo/_pseudo.json").read_text())
    assert (described["teacher"], described["labels"]) == (str(tmp_path / "teacher"), LABELS)

    terms = {
        "hard": {"weight": 0.5, "loss": {"_target_": "distillkit.losses.task.CrossEntropy"}},
        "kd": {"weight": 0.5, "loss": {"_target_": "distillkit.losses.divergences.ForwardKL", "temperature": 2.0}},
    }
    both = {
        "student": {"_target_": "distillkit.models.students.Pretrained", "path": str(tmp_path / "student")},
        "loss": {"_target_": "distillkit.losses.objective.Objective", "terms": terms},
    }
    train.main(config(tmp_path, "live", **both))
    names = {name: name for name in ("text", "label", "teacher_logits")}
    pseudo = {"_target_": FILES, "train": str(tmp_path / "soft/pseudo/*.parquet"), "columns": names, "labels": LABELS}
    recorded = {"_target_": "distillkit.models.teachers.RecordedTeacher"}
    train.main(config(tmp_path, "recorded", dataset=pseudo, teacher=recorded, **both))
    live, recorded = (
        [event for event in events(tmp_path / name) if event["event"] == "train"] for name in ("live", "recorded")
    )
    assert len(live) == 6
    assert all(event["terms"]["kd"] > 0 for event in live)
    for ours, theirs in zip(recorded, live, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-6)
        assert ours["terms"] == pytest.approx(theirs["terms"], rel=1e-4, abs=1e-8)
