"""A run of generate-pseudo: only what is missing is asked for, and what comes out does not depend on how often."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distillkit.commands import generate_pseudo
from distillkit.data.files import FileDataset
from distillkit.data.mixed import MixedDataset
from distillkit.errors import UserError
from distillkit.generation.soft_labels import AskedForLabels
from distillkit.reporting.files import read_report
from distillkit.schema import Config
from tests.pseudo import config, read
from tests.tiny import classifier, save

SOFT_LABELS = "distillkit.generation.soft_labels.SoftLabels"
LENGTH = "tests.pseudo.Longest"


@pytest.fixture
def labelling(tmp_path, monkeypatch) -> Config:
    """40 rows in 5 shards."""
    monkeypatch.setenv("DISTILLKIT_TRUST", "tests.pseudo")
    save(classifier(), tmp_path / "teacher")
    return config(tmp_path, "soft", generate={"_target_": SOFT_LABELS, "batch_size": 3, "shard_rows": 8})


@pytest.fixture
def asked(monkeypatch) -> list[tuple[int, int]]:
    """The source rows of every question."""
    found: list[tuple[int, int]] = []
    answer = AskedForLabels.answer

    def counted(self: AskedForLabels, start: int, stop: int) -> list[dict]:
        found.append((start, stop))
        return answer(self, start, stop)

    monkeypatch.setattr(AskedForLabels, "answer", counted)
    return found


def interrupt(self: AskedForLabels, start: int, stop: int) -> list[dict]:
    raise KeyboardInterrupt


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith("_")}


def test_a_run_that_stopped_goes_on_with_what_is_missing(labelling, asked, tmp_path, monkeypatch):
    generate_pseudo.main(labelling)
    whole = files(tmp_path / "soft/pseudo"), files(tmp_path / "soft/generated")
    assert asked == [(start, start + 8) for start in range(0, 40, 8)]
    asked.clear()

    labelling.output_dir = labelling.root_dir = str(tmp_path / "stopped")
    with monkeypatch.context() as patch:
        answer = AskedForLabels.answer

        def interrupted(self: AskedForLabels, start: int, stop: int) -> list[dict]:
            if start == 16:
                raise KeyboardInterrupt
            return answer(self, start, stop)

        patch.setattr(AskedForLabels, "answer", interrupted)
        with pytest.raises(KeyboardInterrupt):
            generate_pseudo.main(labelling)
    assert not (tmp_path / "stopped/pseudo").exists()
    asked.clear()
    report = generate_pseudo.main(labelling)
    assert asked == [(start, start + 8) for start in range(16, 40, 8)]
    assert report["rows"] == 40
    assert (files(tmp_path / "stopped/pseudo"), files(tmp_path / "stopped/generated")) == whole
    asked.clear()
    assert generate_pseudo.main(labelling)["rows"] == 40
    assert asked == []


def test_a_shard_that_was_damaged_is_named_and_made_anew_once_it_is_deleted(labelling, asked, tmp_path):
    generate_pseudo.main(labelling)
    whole = read(tmp_path / "soft/pseudo")
    (tmp_path / "soft/report.json").unlink()  # as if the last step had not been reached
    shard = tmp_path / "soft/generated/part-000002.parquet"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    with pytest.raises(UserError, match=r"part-000002\.parquet: the shard was damaged .* delete it"):
        generate_pseudo.main(labelling)
    shard.unlink()
    asked.clear()
    generate_pseudo.main(labelling)
    assert asked == [(16, 24)]
    assert read(tmp_path / "soft/pseudo") == whole


def test_other_filters_ask_the_teacher_nothing(labelling, asked, tmp_path):
    report = generate_pseudo.main(labelling)
    assert (report["rows"], report["rejected"]) == (40, {})
    asked.clear()
    labelling.generate = {**labelling.generate, "filters": {"longest": {"_target_": LENGTH, "characters": 40}}}
    report = generate_pseudo.main(labelling)
    assert asked == []
    kept = read(tmp_path / "soft/pseudo")
    assert report["rows"] == len(kept) == 40 - report["rejected"]["longest"]
    assert 0 < len(kept) < 40
    assert all(len(row["text"]) <= 40 for row in kept)
    assert "rejected by longest" in read_report(tmp_path / "soft")["generate-pseudo"]["markdown"]
    labelling.generate = {**labelling.generate, "batch_size": 5}
    with pytest.raises(UserError, match=r"^output_dir: .* holds another run \(generate\.batch_size: 3 -> 5"):
        generate_pseudo.main(labelling)


def test_rows_or_weights_that_changed_in_between_are_not_mixed(labelling, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(AskedForLabels, "answer", interrupt)
        with pytest.raises(KeyboardInterrupt):
            generate_pseudo.main(labelling)
    save(classifier(seed=4), tmp_path / "teacher")
    with pytest.raises(UserError, match=r"^output_dir: the teacher changed since the first shards were written"):
        generate_pseudo.main(labelling)


def test_no_row_that_is_left_is_an_error_and_not_an_empty_dataset(labelling, tmp_path):
    labelling.generate |= {"filters": {"longest": {"_target_": LENGTH, "characters": 1}}}
    with pytest.raises(UserError, match=r"^generate\.filters\.longest: no row is left"):
        generate_pseudo.main(labelling)
    assert not read_report(tmp_path / "soft")
    assert not (tmp_path / "soft/pseudo").exists()


def test_the_folder_says_what_it_is(labelling, tmp_path):
    generate_pseudo.main(labelling)
    about = json.loads((tmp_path / "soft/pseudo/_pseudo.json").read_text())
    assert about["teacher"] == str(tmp_path / "teacher")
    assert about["settings"]["shard_rows"] == 8
    assert "seconds" not in about  # which would make the folder another one each time


def test_pseudo_rows_mix_with_the_original_data_at_the_chosen_ratio(labelling, tmp_path):
    generate_pseudo.main(labelling)
    columns = {name: name for name in ("text", "label", "teacher_logits")}
    pseudo = FileDataset(train=str(tmp_path / "soft/pseudo/*.parquet"), columns=columns)
    original = FileDataset(train=labelling.dataset["train"])
    sources = {"original": {"dataset": original}, "pseudo": {"dataset": pseudo, "weight": 0.6}}
    logits = MixedDataset(sources).load().split("train")["teacher_logits"][:]
    assert [row is None for row in logits] == [True] * 40 + [False] * 24


def test_without_a_teacher_nobody_is_asked(labelling):
    labelling.teacher = {"_target_": None}
    with pytest.raises(UserError, match=r"^teacher: there is no teacher to ask; set teacher=live"):
        generate_pseudo.main(labelling)


def test_a_finished_store_that_lost_a_shard_is_made_whole(labelling, tmp_path, capsys):
    labelling.generate = {"_target_": "distillkit.generation.teacher_store.TeacherStore", "shard_rows": 8}
    generate_pseudo.main(labelling)
    folder = tmp_path / "soft/teacher-store"
    whole = files(folder)
    assert len(whole) == 12
    (folder / "part-000003.arrow").unlink()
    generate_pseudo.main(labelling)
    assert "going on: 4 of 5 shards are there" in capsys.readouterr().out
    assert files(folder) == whole
    generate_pseudo.main(labelling)
    assert "already finished" in capsys.readouterr().out
