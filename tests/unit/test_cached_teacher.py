"""A student learns from a store what it learns from the teacher; and a store that does not fit is refused."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from distillkit.cache.dense import Dense
from distillkit.cache.mixture import mix
from distillkit.cache.sparse import TopKSampled
from distillkit.commands import eval as evaluation
from distillkit.commands import train
from distillkit.commands.stored_outputs import FOLDER
from distillkit.data.files import FileDataset
from distillkit.errors import UserError
from distillkit.models.cached import CachedTeacher
from distillkit.reporting.files import read_report
from distillkit.schema import Config
from distillkit.signals import DenseLogits, SparseLogits
from distillkit.tasks.causal_lm import CausalLM
from tests.pseudo import config
from tests.stores import make_store
from tests.tiny import LABELS, classifier, data_files, events, language_model, rows, save, write_jsonl

KD = {"_target_": "distillkit.losses.divergences.ForwardKL", "temperature": 2.0}
HARD = {"_target_": "distillkit.losses.task.CrossEntropy"}
HIDDEN = {"_target_": "distillkit.losses.hidden.HiddenMSE", "layers": "last"}


def objective(**losses: dict) -> dict:
    terms = {name: {"weight": 0.5, "loss": loss} for name, loss in losses.items()}
    return {"_target_": "distillkit.losses.objective.Objective", "terms": terms}


def cached(*paths: Path, **settings) -> dict:
    path = [str(one) for one in paths]
    return {
        "_target_": "distillkit.models.cached.CachedTeacher",
        "path": path if len(path) > 1 else path[0],
        **settings,
    }


@pytest.fixture
def classes(tmp_path) -> Config:
    """A teacher, a student, and the config of its training from the live teacher."""
    save(classifier(), tmp_path / "teacher")
    save(classifier(layers=1, seed=3), tmp_path / "student")
    student = {"_target_": "distillkit.models.students.Pretrained", "path": str(tmp_path / "student")}
    return config(tmp_path, "live", student=student, loss=objective(hard=HARD, kd=KD))


@pytest.fixture
def language(tmp_path) -> Config:
    save(language_model(), tmp_path / "teacher")
    save(language_model(layers=1, seed=3), tmp_path / "student")
    student = {"_target_": "distillkit.models.students.Pretrained", "path": str(tmp_path / "student")}
    made = config(tmp_path, "live", student=student, loss=objective(hard=HARD, kd=KD))
    made.task = {"_target_": "distillkit.tasks.causal_lm.CausalLM", "max_length": 32}
    made.dataset = {**data_files(tmp_path / "data"), "_target_": "distillkit.data.files.FileDataset"}
    made.dataset |= {"columns": {"text": "text"}}
    return made


def store(made: Config, folder: Path, live=None, name: str = "store", **settings) -> Path:
    """Store what a teacher says about the rows of a config."""
    source = FileDataset(**{key: value for key, value in made.dataset.items() if key != "_target_"})
    live = live or (classifier() if "classification" in made.task["_target_"] else language_model())
    make_store(folder / name, live, source.load(), **settings)
    return folder / name / FOLDER


def from_store(made: Config, folder: Path, *paths: Path, name: str = "cached", **settings) -> Config:
    made.output_dir = made.root_dir = str(folder / name)
    made.teacher = cached(*paths, **settings)
    return made


def losses(folder: Path, name: str) -> list[float]:
    return [event["loss"] for event in events(folder / name) if event["event"] == "train"]


@pytest.mark.parametrize("batch", [{}, {"micro_batch_size": 3}])
def test_losses_from_a_store_of_classes_are_those_of_the_live_teacher(classes, tmp_path, batch):
    for key, value in batch.items():
        setattr(classes.train, key, value)
    train.main(classes)
    train.main(from_store(classes, tmp_path, store(classes, tmp_path)))
    assert losses(tmp_path, "cached") == pytest.approx(losses(tmp_path, "live"), rel=1e-6)
    assert len(losses(tmp_path, "live")) == 6
    report = read_report(tmp_path / "cached")["train"]
    assert report["teacher"] == str(tmp_path / "store/teacher")  # the model, not the store


@pytest.mark.parametrize("packing", [False, True])
def test_losses_from_a_store_of_tokens_are_those_of_the_live_teacher(language, tmp_path, packing):
    path = store(language, tmp_path, codec=Dense())
    language.task["packing"] = packing  # the store does not depend on it
    train.main(language)
    train.main(from_store(language, tmp_path, path))
    assert losses(tmp_path, "cached") == pytest.approx(losses(tmp_path, "live"), rel=1e-5)


def test_losses_on_features_come_from_the_store(classes, tmp_path):
    classes.loss = objective(hidden=HIDDEN, kd=KD)
    train.main(classes)
    path = store(classes, tmp_path, features=["layers.1.hidden"])
    train.main(from_store(classes, tmp_path, path))
    assert losses(tmp_path, "cached") == pytest.approx(losses(tmp_path, "live"), rel=1e-3)


def test_a_student_is_made_of_the_layers_of_the_teacher_that_the_store_names(classes, tmp_path):
    path = store(classes, tmp_path)
    save(classifier(), tmp_path / "store/teacher")
    classes.student = {"_target_": "distillkit.models.students.FromTeacher", "layers": 1}
    train.main(classes)
    train.main(from_store(classes, tmp_path, path))
    assert losses(tmp_path, "cached") == pytest.approx(losses(tmp_path, "live"), rel=1e-6)


def test_rows_without_labels_take_the_classes_of_the_store(classes, tmp_path):
    lines = [{"text": row["text"]} for row in rows(16)]
    classes.dataset = {
        "_target_": "distillkit.data.files.FileDataset",
        "train": str(write_jsonl(tmp_path / "texts.jsonl", lines)),
        "columns": {"text": "text"},
    }
    classes.loss = objective(kd=KD)
    train.main(from_store(classes, tmp_path, store(classes, tmp_path)))
    saved = json.loads((tmp_path / "cached/model/config.json").read_text())
    assert list(saved["id2label"].values()) == LABELS


REFUSALS = {
    "other rows": ({"dataset": {"train": "other"}}, "is about other data: .*40 rows.*30 rows"),
    "another length": ({"task": {"max_length": 16}}, r"was made with task\.max_length=32, and here it is 16"),
    "another tokenizer": ({"student": {"path": "other"}}, "was made with another tokenizer"),
    "not finished": ({}, "is a teacher store that is not finished"),
    "features": ({"loss": objective(hidden=HIDDEN)}, r"does not hold layers\.1\.hidden; make it with"),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_a_store_that_does_not_fit_is_refused_at_once_and_before_any_weight(classes, tmp_path, monkeypatch, what):
    changes, said = REFUSALS[what]
    path = store(classes, tmp_path)
    if what == "not finished":
        (path / "store.json").unlink()
    if what == "other rows":
        classes.dataset["train"] = str(write_jsonl(tmp_path / "other.jsonl", rows(30, seed=9)))
    elif what == "another tokenizer":
        other = classifier(layers=1)
        other.tokenizer.add_tokens(["another"])
        save(other, tmp_path / "other")
        classes.student["path"] = str(tmp_path / "other")
    elif what == "features":
        classes.loss = changes["loss"]
    elif changes:
        classes.task |= changes["task"]

    def weights(*arguments: object, **named: object) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr("distillkit.models.students.load_live", weights)
    started = time.monotonic()
    with pytest.raises(UserError, match=said):
        train.main(from_store(classes, tmp_path, path))
    assert time.monotonic() - started < 2


def test_another_way_of_encoding_is_refused(language, tmp_path):
    """A tokenizer of the same tokens that puts one before each text."""
    path = store(language, tmp_path)
    student = language_model(layers=1)
    student.tokenizer.add_bos_token = True
    student.tokenizer._tokenizer.post_processor = _with_start()
    save(student, tmp_path / "student")
    with pytest.raises(UserError, match="encoded in another way"):
        train.main(from_store(language, tmp_path, path))


def _with_start():
    from tokenizers.processors import TemplateProcessing

    return TemplateProcessing(single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)])


def test_metrics_and_what_is_reported_do_not_matter(classes, tmp_path):
    path = store(classes, tmp_path)
    classes.task |= {"metrics": ["f1", "accuracy"], "positive": "bad"}
    train.main(from_store(classes, tmp_path, path))


@pytest.mark.parametrize("weights", [None, [3.0, 1.0]])
def test_several_stores_are_one_teacher(classes, tmp_path, weights):
    teachers = [classifier(seed=seed).eval() for seed in (0, 5)]
    paths = [store(classes, tmp_path, live, f"store-{index}") for index, live in enumerate(teachers)]
    both = CachedTeacher([str(path) for path in paths], weights)
    shares = [0.5, 0.5] if weights is None else [0.75, 0.25]
    assert both.weights == shares
    train.main(from_store(classes, tmp_path, *paths, weights=weights))
    assert len(losses(tmp_path, "cached")) == 6
    report = read_report(tmp_path / "cached")["train"]
    assert report["teacher"] == f"{tmp_path / 'store-0/teacher'} + {tmp_path / 'store-1/teacher'}"


def test_a_store_of_another_task_is_refused(classes, tmp_path):
    path = store(classes, tmp_path)
    with pytest.raises(UserError, match=r"was made for sequence_classification, not for causal_lm"):
        CachedTeacher(str(path)).check(CausalLM())


def test_stores_of_other_classes_do_not_mix(classes, tmp_path):
    one, other = store(classes, tmp_path), store(classes, tmp_path, name="other")
    about = json.loads((other / "store.json").read_text())
    about["labels"] = ["x", "y"]
    (other / "store.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match=r"^teacher\.path\.1: .* has other class names than"):
        train.main(from_store(classes, tmp_path, one, other))


def test_the_mixture_is_that_of_the_probabilities():
    torch.manual_seed(0)
    logits = [torch.randn(7, 9), 3 * torch.randn(7, 9)]
    expected = sum(w * one.double().softmax(dim=-1) for w, one in zip((0.25, 0.75), logits, strict=True))
    dense = mix([DenseLogits(one) for one in logits], [0.25, 0.75], "classes")
    assert dense.values.exp() == pytest.approx(expected, abs=1e-6)
    labels = mix([DenseLogits(one) for one in logits], [0.25, 0.75], "labels")
    on = sum(w * one.double().sigmoid() for w, one in zip((0.25, 0.75), logits, strict=True))
    assert labels.values.double().sigmoid() == pytest.approx(on, abs=1e-6)
    scores = mix([DenseLogits(one) for one in logits], [0.25, 0.75], "scores")
    assert scores.values == pytest.approx(0.25 * logits[0] + 0.75 * logits[1], abs=1e-6)


@pytest.mark.parametrize("k", [2, 5, 9])
def test_the_mixture_of_sparse_teachers_spreads_what_each_has_left(k):
    torch.manual_seed(0)
    sparse = [SparseLogits.best(scale * torch.randn(7, 9), k) for scale in (1, 3)]
    expected = sum(w * one.rows(0, 7).double().exp() for w, one in zip((0.25, 0.75), sparse, strict=True))
    mixed = mix(sparse, [0.25, 0.75], "classes")
    assert mixed.rows(0, 7).double().exp() == pytest.approx(expected, abs=1e-6)
    listed = [set(row) - {-1} for row in mixed.ids.tolist()]
    assert listed == [set(a) | set(b) for a, b in zip(*(one.ids.tolist() for one in sparse), strict=True)]


def test_draws_take_part_in_a_mixture_for_losses_that_are_linear():
    torch.manual_seed(0)
    logits = [2 * torch.randn(1, 12).double() for _ in range(2)]
    codec = TopKSampled(k=3, draws=6)
    kept = []
    for index, one in enumerate(logits):
        same = one.float().expand(4000, -1).contiguous()
        coded = codec.encode(same, torch.arange(4000) + 10_000 * index)
        kept.append(codec.decode(coded.pack([4000]), 12))
    expected = sum(w * one[0].softmax(dim=-1) for w, one in zip((0.25, 0.75), logits, strict=True))
    drawn = mix(kept, [0.25, 0.75], "classes", draws=True)
    found = torch.zeros(4000, 13, dtype=torch.float64)
    found.scatter_add_(1, drawn.ids.where(drawn.ids >= 0, 12), drawn.log_probs.double().exp())
    mean, error = found[:, :12].mean(dim=0), found[:, :12].std(dim=0) / 4000**0.5
    assert ((mean - expected).abs() < 5 * error + 2e-3).all()  # 8 bits of what is listed
    even = mix(kept, [0.25, 0.75], "classes")
    assert even.drawn is None
    assert even.rows(0, 1).exp().sum() == pytest.approx(1, abs=1e-5)
    alone = [replace(one, ids=one.ids[:, :0], log_probs=one.log_probs[:, :0]) for one in kept]
    with pytest.raises(UserError, match="only hold random draws"):
        mix(alone, [0.5, 0.5], "classes")
    with pytest.raises(UserError, match="different temperatures"):
        mix([kept[0], replace(kept[1], temperature=2.0)], [0.5, 0.5], "classes")
    with pytest.raises(UserError, match="of whole and of sparse"):
        mix([kept[0], DenseLogits(torch.zeros(4000, 12))], [0.5, 0.5], "classes")


def test_eval_checks_a_store_and_compares_it_with_its_teacher(classes, tmp_path, capsys):
    path = store(classes, tmp_path)
    save(classifier(), tmp_path / "store/teacher")
    made = config(tmp_path, "measured")
    made.evaluate.models = {"store": str(path)}
    report = evaluation.main(made)
    assert report["stores"]["store"]["quality"]["kl"] == pytest.approx(0, abs=1e-6)
    assert report["stores"]["store"]["quality"]["gradient_cosine"] == pytest.approx(1, abs=1e-6)
    said = capsys.readouterr().out
    for title in ("bytes per item", "covered mass", "KL(teacher ‖ decoded)", "gradient cosine", "gradient bias"):
        assert title in said
    assert "gradient cosine" in (tmp_path / "measured/report.md").read_text()


def test_eval_names_what_is_wrong_with_a_store(classes, tmp_path):
    path = store(classes, tmp_path)
    save(classifier(), tmp_path / "store/teacher")
    made = config(tmp_path, "measured")
    made.evaluate.models = {"store": str(path), "model": str(tmp_path / "teacher")}
    with pytest.raises(UserError, match=r"^evaluate\.models\.store: is a teacher store among models"):
        evaluation.main(made)
    made.evaluate.models = {"store": str(path)}
    shard = path / "part-000003.arrow"
    data = bytearray(shard.read_bytes())
    data[-20] ^= 1
    shard.write_bytes(data)
    with pytest.raises(UserError, match=r"part-000003\.arrow: the shard was damaged"):
        evaluation.main(made)
    data[-20] ^= 1
    shard.write_bytes(data)
    save(classifier(seed=9), tmp_path / "store/teacher")
    with pytest.raises(UserError, match=r"the weights of its teacher .* changed since"):
        evaluation.main(made)
