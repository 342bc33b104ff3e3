"""Two processes on CPU (gloo) come to what one process comes to."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from distillkit.reporting.files import read_report
from tests.nursery import Nursery
from tests.terminal import Outcome, distillkit
from tests.tiny import classifier, data_files, events, language_model, save

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = [  # 36 rows in batches of 7: the last one of an epoch has a single row, which leaves nothing to process 1
    "teacher=live",
    "student=from_teacher",
    "student.layers=1",
    "loss=kd",
    "train.batch_size=7",
    "train.micro_batch_size=2",
    "train.epochs=2",
    "train.evaluate_every=4",
    "train.learning_rate=0.01",
    "train.epsilon=1e-3",  # a key's bias has no gradient but rounding errors, which Adam would blow up
    "train.log_every=1",
]
RECIPE = """\
# Every command in two processes.
# distillkit run every.yaml
defaults:
  - config
  - override task: causal_lm
  - override teacher: live
  - override student: from_teacher
  - override loss: kd
  - override generate: text
  - _self_
name: every
task: {max_length: 32}
dataset: {train: data/train.jsonl, validation: data/validation.jsonl, columns: {label: null}}
teacher: {path: language_model}
generate: {temperature: 0.0, max_new_tokens: 8, prompt_tokens: 4, backend: {batch_size: 5}, shard_rows: 5}
evaluate: {speed: false, batch_size: 3, resamples: 100}
stages:
  train: {command: train}
  other: {command: train, set: {train: {seed: 1, epochs: 1}}}
  text: {command: generate-pseudo}
  labels:
    command: generate-pseudo
    choose: {task: sequence_classification, generate: soft_labels}
    set:
      task: {max_length: 32}
      teacher: {path: classifier}
      dataset: {columns: {label: label}}
      generate: {shard_rows: 5}
  store:
    command: generate-pseudo
    choose: {generate: teacher_store}
    set: {generate: {shard_rows: 5, batch_size: 3}}
  eval:
    command: eval
    set: {evaluate: {models: {teacher: "${root_dir}/train/model", student: "${root_dir}/other/model"}}}
"""
DESCRIPTION = "_pseudo.json"  # holds the name of the run
DEADLY = """\
import os, signal
from distillkit.losses.task import CrossEntropy

class Deadly(CrossEntropy):
    steps = 0

    def per_item(self, student, teacher, labels):
        Deadly.steps += 1
        first = os.environ.get("DISTILLKIT_RESTARTS") == "0"
        if Deadly.steps == 12 and "DEADLY" in os.environ and first and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().per_item(student, teacher, labels)
"""


@pytest.fixture(scope="module", autouse=True)
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    save(classifier(), folder / "classifier")
    save(language_model(), folder / "language_model")
    data_files(folder / "data", 36)
    (folder / "every.yaml").write_text(RECIPE, encoding="utf-8")
    (folder / "deadly.py").write_text(DEADLY, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in ("RANK", "LOCAL_RANK"):
            patch.delenv(name, raising=False)
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("PYTHONPATH", f"{ROOT}:{folder}")
        yield folder


@pytest.fixture(scope="module")
def torchrun(bench: Path) -> tuple[Path, Path]:
    """A recipe with every kind of stage, run by one process and by two that torchrun starts."""
    settings = [*SETTINGS, "output_dir=every-1"]
    assert distillkit("run", "every.yaml", *settings).code == 0
    settings[-1] = "output_dir=every-2"
    script = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "distillkit", "run", "every.yaml"]
    done = subprocess.run(
        [sys.executable, *script, *settings], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("[1/6] train") == 1  # only the first process speaks
    return bench / "every-1", bench / "every-2"


def train(processes: int, output: str, *more: str) -> Outcome:
    data = ["dataset.train=data/train.jsonl", "dataset.validation=data/validation.jsonl", "task.max_length=32"]
    own = ["teacher.path=classifier", f"output_dir={output}", f"launch.num_processes={processes}"]
    deadly = ["loss.terms.hard.loss._target_=deadly.Deadly", "train.checkpoint_every=2"]
    return distillkit("train", *data, *SETTINGS, *own, *deadly, *more)


def train_together(nursery: Nursery, folder: Path, argv: list[str], output: str) -> None:
    """Run the same training in one process and in two, into the folders OUTPUT-1 and OUTPUT-2."""
    assert distillkit(*argv, f"output_dir={output}-1").code == 0
    children = nursery.group([*argv, f"output_dir={output}-2"], folder, 2)
    assert [child.wait() for child in children] == [0, 0], [child.err for child in children]


def check_training(one: Path, two: Path, start: Path) -> None:
    expected, found = events(one), events(two)
    assert [event["step"] for event in expected if event["event"] == "train"] == list(range(1, 13))
    assert [event["event"] for event in found] == [event["event"] for event in expected]
    for ours, theirs in zip(found, expected, strict=True):
        terms = theirs.pop("terms", {})
        assert ours.pop("terms", {}) == pytest.approx(terms, rel=1e-5, abs=1e-6)
        assert {key: value for key, value in ours.items() if isinstance(value, str)} == {"event": theirs.pop("event")}
        ours.pop("event")
        assert ours == pytest.approx(theirs, rel=1e-5)
    weights, same = (load_file(folder / "model/model.safetensors") for folder in (one, two))
    before = load_file(start / "model.safetensors")
    assert weights.keys() == same.keys()
    assert any((weights[name] - before[name]).abs().max() > 1e-3 for name in weights)
    for name, weight in weights.items():
        assert (weight - same[name]).abs().max() < 1e-5, name


@pytest.fixture
def launched(bench: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What one process comes to with a loss that kills another one."""
    monkeypatch.setenv("DISTILLKIT_TRUST", "deadly")
    monkeypatch.syspath_prepend(str(bench))
    assert train(1, "launched-1").code == 0  # the second time it is there already
    return bench / "launched-1"


def test_a_classifier_learns_the_same_even_if_a_process_dies(
    bench: Path, launched: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("DEADLY", "1")
        assert train(2, "launched-2").code == 1
    assert "process 1 was ended by SIGKILL; the others were stopped" in capfd.readouterr().err
    assert not (bench / "launched-2/model").exists()
    assert train(2, "launched-2").code == 0
    assert "resuming from launched-2/checkpoints/step-" in capfd.readouterr().out
    check_training(launched, bench / "launched-2", bench / "classifier")


def test_shards_go_on_by_themselves_after_a_process_died(
    bench: Path, launched: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DEADLY", "1")
    done = train(2, "sharded-2", "launch=fsdp", "launch.max_restarts=1", "resume=never", "teacher.shard=true")
    assert (done.code, done.err) == (0, "distillkit: starting again, 1 of 1 times\n")
    assert "resuming from sharded-2/checkpoints/step-" in capfd.readouterr().out
    check_training(launched, bench / "sharded-2", bench / "classifier")
    shards = {path.name for path in (bench / "sharded-2/checkpoints").glob("step-*/shards/*")}
    assert len(shards) == 2


@pytest.mark.parametrize("loss", ["tinybert", "minilmv2"])
def test_what_happens_inside_is_learned_the_same(bench: Path, nursery: Nursery, loss: str) -> None:
    """With projectors that both processes train; with weights of the student that no loss reaches."""
    narrow = ["student=from_config", "+student.config.hidden_size=8", "+student.config.num_hidden_layers=1"]
    heads = ["loss.terms.relations.loss.heads=2"] if loss == "minilmv2" else []
    data = ["dataset.train=data/train.jsonl", "task.max_length=32", "teacher.path=classifier"]
    settings = [word for word in SETTINGS if not word.startswith(("student", "loss"))]
    train_together(nursery, bench, ["train", *data, *settings, *narrow, f"loss={loss}", *heads], loss)
    one, two = (events(bench / f"{loss}-{processes}") for processes in (1, 2))
    assert one[-1]["loss"] < one[0]["loss"]
    for ours, theirs in zip(two, one, strict=True):
        assert ours["terms"] == pytest.approx(theirs["terms"], rel=1e-5, abs=1e-6)


def test_a_stream_is_shared(bench: Path, nursery: Nursery) -> None:
    """Windows of 16, 16 and 4 rows in batches of 7, so that the last ones of a window hold 2 and 4."""
    data = ["dataset.train=data/train.jsonl", "dataset.validation=data/validation.jsonl", "task.max_length=32"]
    stream = ["dataset.streaming=true", "dataset.window=16", "dataset.labels=[bad,good]", "train.max_steps=12"]
    train_together(nursery, bench, ["train", *data, *stream, *SETTINGS, "teacher.path=classifier"], "stream")
    check_training(bench / "stream-1", bench / "stream-2", bench / "classifier")
    assert events(bench / "stream-1")[-2]["epoch"] == 1.0


def test_a_language_model_learns_the_same(torchrun: tuple[Path, Path], bench: Path) -> None:
    check_training(*(folder / "train" for folder in torchrun), bench / "language_model")


@pytest.mark.parametrize(("stage", "kept"), [("text", "pseudo"), ("labels", "pseudo"), ("store", "teacher-store")])
def test_two_processes_write_the_files_that_one_writes(torchrun: tuple[Path, Path], stage: str, kept: str) -> None:
    one, two = (
        {path.name: path.read_bytes() for path in (folder / stage / kept).iterdir() if path.name != DESCRIPTION}
        for folder in torchrun
    )
    assert len(one) == (18 if stage == "store" else 1)
    assert one == two


def test_both_processes_measure_what_one_measures(torchrun: tuple[Path, Path]) -> None:
    one, two = (read_report(folder / "eval")["eval"]["models"] for folder in torchrun)
    for name in one:
        assert two[name]["metrics"] == pytest.approx(one[name]["metrics"], rel=1e-5), name
        assert two[name]["agreement"] == pytest.approx(one[name]["agreement"]), name
    assert 0 < one["student"]["agreement"] < 1


def test_one_report_of_the_whole_run(torchrun: tuple[Path, Path]) -> None:
    one, two = (read_report(folder)["run"] for folder in torchrun)
    assert list(two["stages"]) == list(one["stages"]) == ["train", "other", "text", "labels", "store", "eval"]
