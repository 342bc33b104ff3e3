"""Regression, several labels, tagging and reading on the command line: teacher, student, comparison, int8."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet
import pytest
import transformers
import yaml
from transformers import AutoConfig

from distillkit.reporting.files import read_report
from tests.samples import ROWS, question_rows, score_rows, tag_rows, write_rows
from tests.terminal import Outcome, distillkit
from tests.tiny import write_jsonl

SHORT = [
    "train.max_steps=6",
    "train.batch_size=8",
    "train.learning_rate=0.01",
    "evaluate.speed=false",
    "evaluate.memory=false",
    "evaluate.resamples=0",
]
TINY = [
    "student=from_config",
    "student.model_type=bert",
    "+student.config.hidden_size=16",
    "+student.config.num_hidden_layers=2",
    "+student.config.num_attention_heads=2",
    "+student.config.intermediate_size=32",
    "+student.config.max_position_embeddings=64",
    "+student.tokenizer._target_=distillkit.models.tokenizers.ByteLevelBPE",
    "+student.tokenizer.vocab_size=400",
]
HARD = {"regression": "regression", "multi_label": "multi_label"}
SOFT = {"regression": "regression_kd", "multi_label": "multi_label_kd"}
CLASSES = {
    "regression": transformers.AutoModelForSequenceClassification,
    "multi_label": transformers.AutoModelForSequenceClassification,
    "token_classification": transformers.AutoModelForTokenClassification,
    "question_answering": transformers.AutoModelForQuestionAnswering,
}
SETTINGS = {"question_answering": ["task.max_length=48", "task.stride=8", "task.max_question=16"]}
MODULES = "distillkit.losses"


def run(*argv: str) -> Outcome:
    result = distillkit(*argv)
    assert (result.code, result.err) == (0, ""), result.err
    return result


def of(task: str) -> list[str]:
    data = [f"dataset.train={task}/train.jsonl", f"dataset.validation={task}/validation.jsonl"]
    return [f"task={task}", *data, *SETTINGS.get(task, ["task.max_length=48"]), *SHORT]


@pytest.fixture(scope="module", autouse=True)
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working directory, with data and a teacher for each task."""
    folder = tmp_path_factory.mktemp("desk")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in ("RANK", "LOCAL_RANK", "DISTILLKIT_TRUST"):
            patch.delenv(name, raising=False)
        for task in ROWS:
            write_rows(folder / task, task)
            run("train", *of(task), *TINY, f"loss={HARD.get(task, 'hard')}", f"output_dir={task}/teacher")
        yield folder


def teacher(task: str) -> list[str]:
    return ["teacher=live", f"teacher.path={task}/teacher/model", f"loss={SOFT.get(task, 'kd')}"]


@pytest.mark.parametrize("task", ROWS)
def test_teacher_student_comparison_and_int8(task: str, desk: Path) -> None:
    student = ["student=from_teacher", "student.layers=1"]
    inside = [
        "+loss.terms.hidden.weight=0.1",
        f"+loss.terms.hidden.loss._target_={MODULES}.hidden.HiddenMSE",
        "+loss.terms.attention.weight=0.1",
        f"+loss.terms.attention.loss._target_={MODULES}.attention.AttentionKL",
        "+loss.terms.relations.weight=0.1",
        f"+loss.terms.relations.loss._target_={MODULES}.relations.RelationKL",
    ]
    run("train", *of(task), *teacher(task), *student, *inside, f"output_dir={task}/student")
    report = read_report(Path(f"{task}/student"))["train"]
    assert set(report["loss"]) == {"hard", "kd", "hidden", "attention", "relations"}
    model, info = CLASSES[task].from_pretrained(f"{task}/student/model", output_loading_info=True)
    assert not any(info.values()), info
    run("compress", *of(task), "compress=int8", f"compress.model={task}/student/model", f"output_dir={task}/small")
    compared = [
        f"+evaluate.models.{name}={task}/{path}" for name, path in (("t", "teacher/model"), ("s", "student/model"))
    ]
    small = f"+evaluate.models.small={task}/small/compressed/int8"
    run("eval", *of(task), *compared, small, f"output_dir={task}/compared")
    found = read_report(Path(f"{task}/compared"))["eval"]["models"]
    assert list(found) == ["t", "s", "small"]
    again = {name: value for name, value in found["s"]["metrics"].items() if name in report["metrics"]}
    assert again == pytest.approx(report["metrics"], rel=1e-3, abs=1e-4)
    assert found["small"]["metrics"]["loss"] == pytest.approx(found["s"]["metrics"]["loss"], rel=0.1)
    assert model.num_parameters() == found["s"]["parameters"]


def test_a_model_says_what_it_answers(desk: Path) -> None:
    configs = {task: AutoConfig.from_pretrained(f"{task}/teacher/model") for task in ROWS}
    assert (configs["regression"].num_labels, configs["regression"].problem_type) == (1, "regression")
    assert configs["multi_label"].problem_type == "multi_label_classification"
    assert configs["multi_label"].id2label == {0: "bad", 1: "good", 2: "place"}
    assert set(configs["token_classification"].id2label.values()) == {"B-LOC", "B-PER", "I-LOC", "I-PER", "O"}
    assert configs["question_answering"].num_labels == 2


@pytest.mark.parametrize("task", SOFT)
def test_soft_labels_are_written_and_learned(task: str, desk: Path) -> None:
    run("generate-pseudo", *of(task), *teacher(task), "generate.labels=replace", f"output_dir={task}/soft")
    pseudo = f"dataset.train={task}/soft/pseudo/*.parquet"
    recorded = ["teacher=recorded", f"loss={SOFT[task]}", f"student.path={task}/teacher/model"]
    learn = [*of(task), *recorded, f"output_dir={task}/from_soft", "dataset.columns.teacher_logits=teacher_logits"]
    run("train", *learn, pseudo)
    assert read_report(Path(f"{task}/from_soft"))["train"]["teacher"] == "recorded with the rows"


def test_rows_with_soft_scores_keep_their_classes(desk: Path) -> None:
    rows = [row | {"label": "many" if row["score"] > 2 else "few"} for row in score_rows(8)]
    write_jsonl(desk / "both.jsonl", rows)
    settings = [word for word in of("regression") if not word.startswith("dataset.")]
    run("generate-pseudo", *settings, "dataset.train=both.jsonl", *teacher("regression"), "output_dir=both")
    written = pyarrow.parquet.read_table(desk / "both/pseudo").to_pylist()
    assert [{name: row[name] for name in rows[0]} for row in written] == rows
    assert all(len(row["teacher_logits"]) == 1 for row in written)


@pytest.mark.parametrize("task", ["token_classification", "question_answering"])
def test_where_there_are_no_soft_labels_that_is_said(task: str, desk: Path) -> None:
    recorded = ["teacher=recorded", "loss=kd", f"student.path={task}/teacher/model"]
    for argv, problem in (
        (["generate-pseudo", *of(task), *teacher(task)], f"generate: {task} has no soft labels to write"),
        (["train", *of(task), *recorded], f"teacher: {task} has no recorded soft labels"),
    ):
        result = distillkit(*argv, "output_dir=none")
        assert (result.code, result.err.count("\n")) == (2, 1)
        assert problem in result.err
    assert not (desk / "none").exists()


REFUSED = {
    "a loss on classes": (
        ["task=regression", "loss=hard"],
        "loss.terms.hard: CrossEntropy compares classes, and models for regression give scores; use loss=regression or",
    ),
    "a teacher of other outputs": (
        ["task=regression", "teacher=live", "teacher.path=multi_label/teacher/model", "loss=regression_kd"],
        "teacher.path: the model has 3 outputs, not one score",
    ),
    "a teacher of another task": (
        ["task=regression", "teacher=live", "teacher.path=question_answering/teacher/model", "loss=regression_kd"],
        "teacher.path: the model has 2 outputs, not one score",
    ),
    "an unknown metric": (["task=regression", "loss=regression", "task.metrics=[pearsn]"], "did you mean 'pearson'"),
    "another metric to choose by": (
        ["task=regression", "loss=regression", "train.best_metric=accuracy"],
        "train.best_metric: regression has no metric 'accuracy'",
    ),
    "no score": (["task=regression", "loss=regression", "dataset.columns.score=null"], "dataset.columns.score"),
    "an answer elsewhere": (
        ["task=question_answering", "loss=hard", "dataset.train=wrong.jsonl"],
        "wrong.jsonl:3: the answer 'york' is not in its context at 1",
    ),
    "no answer": (["task=question_answering", "loss=hard", "dataset.train=none.jsonl"], "task.null_threshold"),
    "too few tags": (["task=token_classification", "loss=hard", "dataset.train=few.jsonl"], "few.jsonl:2: "),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_work_is_refused_in_one_line(case: str, desk: Path) -> None:
    answered = question_rows(4)
    wrong = [*answered[:2], answered[2] | {"answers": [{"text": "york", "answer_start": 1}]}]
    write_jsonl(desk / "wrong.jsonl", wrong)
    write_jsonl(desk / "none.jsonl", [*answered, answered[0] | {"answers": []}])
    tagged = tag_rows(3)
    write_jsonl(desk / "few.jsonl", [tagged[0], tagged[1] | {"tags": tagged[1]["tags"][1:]}])
    settings, problem = REFUSED[case]
    task = settings[0].removeprefix("task=")
    mine = [word for word in of(task) if not any(word.split("=")[0] == own.split("=")[0] for own in settings)]
    result = distillkit("train", *mine, *settings, f"student.path={task}/teacher/model", "output_dir=refused")
    assert (result.code, result.err.count("\n")) == (2, 1), result.err
    assert problem in result.err
    assert not (desk / "refused").exists()


@pytest.mark.parametrize(
    ("dataset", "metrics"),
    [("cola", ["matthews"]), ("mrpc", ["accuracy", "f1"]), ("qqp", ["accuracy", "f1"]), ("sst2", None)],
)
def test_glue_datasets_bring_their_metrics(dataset: str, metrics: list[str] | None) -> None:
    shown = run("train", f"dataset={dataset}", "student.path=x", "--cfg", "job", "--resolve")
    config = yaml.safe_load(shown.out)
    assert config["task"]["metrics"] == metrics
    assert config["dataset"]["path"] == "nyu-mll/glue"
    other = run("train", f"dataset={dataset}", "task=causal_lm", "student.path=x", "--cfg", "job", "--resolve")
    assert "metrics" not in yaml.safe_load(other.out)["task"]


def test_an_exported_model_of_other_classes_is_refused(desk: Path) -> None:
    settings = [*of("token_classification"), "compress=int8", "compress.steps.onnx=null"]
    run("compress", *settings, "compress.model=token_classification/teacher/model", "output_dir=exported")
    model = "+evaluate.models.int8=exported/compressed/int8"
    labels = "dataset.labels=[O,B-LOC,B-PER,I-LOC,I-PER]"
    result = distillkit("eval", *of("token_classification"), model, labels, "output_dir=none")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "evaluate.models.int8: the model has other classes in another order" in result.err


def test_unanswerable_questions(desk: Path) -> None:
    rows = question_rows(24)
    write_jsonl(
        desk / "some.jsonl", [row | ({"answers": []} if index % 3 == 0 else {}) for index, row in enumerate(rows)]
    )
    settings = [word for word in of("question_answering") if not word.startswith("dataset.")]
    data = ["dataset.train=some.jsonl", "dataset.validation=some.jsonl", "task.null_threshold=0"]
    run("train", *settings, *data, "student.path=question_answering/teacher/model", "output_dir=unsure")
    metrics = read_report(Path("unsure"))["train"]["metrics"]
    assert {"has_answer_f1", "no_answer_f1", "best_f1", "best_threshold"} <= set(metrics)
    skipped = run(
        *("train", *settings, *data[:2], "dataset.on_bad_row=skip"),
        *("student.path=question_answering/teacher/model", "output_dir=sure"),
    )
    assert "8 of 24 rows skipped" in skipped.out
    lines = [json.loads(line) for line in (desk / "some.jsonl").read_text().splitlines()]
    assert sum(not line["answers"] for line in lines) == 8
