"""A student learns from a store what it learns from the teacher; and a store that does not fit is refused."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from tokenizers.processors import TemplateProcessing

from distillkit.cache.dense import Dense
from distillkit.cache.sparse import Sampled, TopK, TopKSampled
from distillkit.cache.store import seal
from distillkit.commands import eval as evaluation
from distillkit.commands import train
from distillkit.commands.stored_outputs import FOLDER
from distillkit.data.files import FileDataset
from distillkit.errors import UserError
from distillkit.models.cached import CachedTeacher
from distillkit.models.live import LiveModel
from distillkit.reporting.files import read_report
from distillkit.schema import Config
from distillkit.tasks.causal_lm import CausalLM
from distillkit.tasks.chat import find_template
from tests.pseudo import config
from tests.stores import make_store
from tests.tiny import LABELS, classifier, data_files, events, language_model, llama, rows, save, tokenizer, write_jsonl

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


@pytest.fixture
def no_weights(monkeypatch) -> None:
    def weights(*arguments: object, **named: object) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr("distillkit.models.students.load_live", weights)
    monkeypatch.setattr("distillkit.models.teachers.load_live", weights)


REFUSALS = {
    "other rows": ({"dataset": {"train": "other"}}, "is about other data: .*40 rows.*30 rows"),
    "another length": ({"task": {"max_length": 16}}, r"was made with task\.max_length=32, and here it is 16"),
    "another truncation": ({"task": {"truncation": "left"}}, r"was made with task\.truncation='right', and here it is"),
    "another tokenizer": ({"student": {"path": "other"}}, "was made with another tokenizer"),
    "not finished": ({}, "is a teacher store that is not finished"),
    "features": ({"loss": objective(hidden=HIDDEN)}, r"does not hold layers\.1\.hidden; make it with"),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_a_store_that_does_not_fit_is_refused_at_once_and_before_any_weight(classes, tmp_path, no_weights, what):
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
    started = time.monotonic()
    with pytest.raises(UserError, match=said):
        train.main(from_store(classes, tmp_path, path))
    assert time.monotonic() - started < 2


ENCODINGS = {
    "start": r"data/train\.jsonl:1 begins with '<\|endoftext\|>.* tokens\), and began with '",
    "template": r"data/train\.jsonl:1 begins with '<\|im_.* tokens\), and began with 'User: ",
}


@pytest.mark.parametrize(
    ("how", "student"),
    [("start", "pretrained"), ("start", "from_teacher"), ("start", "from_config"), ("template", "pretrained")],
)
def test_another_way_of_encoding_is_refused_at_once_and_before_any_weight(language, tmp_path, no_weights, how, student):
    """A tokenizer of the same tokens that puts one before each text, or that has another chat template."""
    live, other = (LiveModel(llama(layers), tokenizer(), CausalLM(max_length=96)) for layers in (2, 1))
    language.task["max_length"] = 96
    if how == "start":
        other.tokenizer._tokenizer.post_processor = TemplateProcessing(
            single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
        )
    else:
        live.tokenizer.chat_template, other.tokenizer.chat_template = (find_template(n) for n in ("plain", "chatml"))
        turns = [{"role": "user", "content": "a fine day"}, {"role": "assistant", "content": "lovely"}]
        language.dataset["train"] = str(write_jsonl(tmp_path / "data/train.jsonl", [{"messages": turns}] * 20))
        language.dataset["columns"] = {"messages": "messages"}
        del language.dataset["validation"], language.dataset["test"]
    path = store(language, tmp_path, live)
    if student == "pretrained":
        save(other, tmp_path / "student")
    elif student == "from_teacher":
        save(other, tmp_path / "store/teacher")
        language.student = {"_target_": "distillkit.models.students.FromTeacher", "layers": 1}
    else:
        save(other, tmp_path / "other")
        language.student = {"_target_": "distillkit.models.students.FromConfig", "tokenizer": str(tmp_path / "other")}
        language.student |= {"model_type": "llama", "config": {"hidden_size": 16, "num_hidden_layers": 1}}
    made = from_store(language, tmp_path, path)
    started = time.monotonic()
    with pytest.raises(UserError, match=f"encoded in another way: .*{ENCODINGS[how]}"):
        train.main(made)
    assert time.monotonic() - started < 2


def test_rows_that_are_no_example_are_compared_when_they_are_encoded(language, tmp_path):
    path = store(language, tmp_path)
    about = json.loads((path / "store.json").read_text())
    about["encoded"]["fingerprint"] = "another"
    seal(path, about)
    with pytest.raises(UserError, match="encoded in another way"):
        train.main(from_store(language, tmp_path, path))


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
    seal(other, about)
    with pytest.raises(UserError, match=r"^teacher\.path\.1: .* has other class names than"):
        train.main(from_store(classes, tmp_path, one, other))


REVERSE = {"_target_": "distillkit.losses.divergences.ReverseKL"}
MSE = {"_target_": "distillkit.losses.logits.LogitMSE", "centred": False}
NEEDS = {
    "reverse": (REVERSE, Sampled(), "ReverseKL needs the teacher's likeliest classes, and .* only holds random draws"),
    "warmer": (KD, Sampled(), "ForwardKL needs the teacher's likeliest classes, and .* only holds random draws"),
    "mse": (MSE, TopK(), "LogitMSE compares logits as they are, and .* holds log-probabilities; compare centred"),
}


@pytest.mark.parametrize("term", NEEDS)
def test_a_loss_that_needs_more_than_was_kept_is_refused_before_any_weight(language, tmp_path, no_weights, term):
    loss, codec, said = NEEDS[term]
    path = store(language, tmp_path, codec=codec)
    language.loss = objective(hard=HARD, **{term: loss})
    with pytest.raises(UserError, match=rf"^loss\.terms\.{term}: {said}"):
        train.main(from_store(language, tmp_path, path))


@pytest.mark.parametrize(("kept", "said"), [(Dense(), "all logits"), (TopK(temperature=2.0), "some of .* 2")])
def test_stores_that_keep_logits_in_other_ways_do_not_mix(language, tmp_path, kept, said):
    paths = [store(language, tmp_path, codec=codec, name=str(index)) for index, codec in enumerate((TopK(), kept))]
    with pytest.raises(UserError, match=rf"^teacher\.path\.1: .* holds {said}.*, and .* some of .*: they cannot be"):
        train.main(from_store(language, tmp_path, *paths))


def test_a_mixture_of_stores_of_draws_trains(language, tmp_path):
    codecs = {"one": Sampled(draws=8, temperature=2.0), "two": TopKSampled(k=4, draws=8, temperature=2.0)}
    paths = [store(language, tmp_path, name=name, codec=codec) for name, codec in codecs.items()]
    train.main(from_store(language, tmp_path, *paths))
    assert len(losses(tmp_path, "cached")) == 6


def test_eval_checks_a_store_and_compares_it_with_its_teacher(classes, tmp_path, capsys):
    path = store(classes, tmp_path)
    save(classifier(), tmp_path / "store/teacher")
    made = config(tmp_path, "measured")
    made.evaluate.models = {"store": str(path)}
    report = evaluation.main(made)
    assert report["stores"]["store"]["quality"]["kl"] == pytest.approx(0, abs=1e-6)
    assert report["stores"]["store"]["quality"]["gradient_cosine"] == pytest.approx(1, abs=1e-6)
    said = capsys.readouterr().out
    titles = ["bytes per item", "covered mass", "KL(teacher ‖ decoded)", "gradient cosine", "gradient bias"]
    for title in (*titles, "summed gradient: cosine", "summed gradient: length"):
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
