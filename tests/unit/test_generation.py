"""Pseudo data: soft labels and text are the teacher's own, and train reads them like any other rows."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet
import pytest
import torch

from distillkit.commands import generate_pseudo, train
from distillkit.data.files import FileDataset
from distillkit.data.mixed import MixedDataset
from distillkit.errors import UserError
from distillkit.generation.soft_labels import SoftLabels
from distillkit.generation.text import TeacherText
from distillkit.generation.writer import write_part
from distillkit.models.live import LiveModel
from distillkit.reporting.files import read_report
from distillkit.schema import Config, TrainSettings
from distillkit.tasks.causal_lm import CausalLM
from distillkit.tasks.sequence_classification import SequenceClassification
from tests.tiny import LABELS, classifier, data_files, events, language_model, rows, save, write_jsonl

SEQUENCE_CLASSIFICATION = "distillkit.tasks.sequence_classification.SequenceClassification"
FILES = "distillkit.data.files.FileDataset"
EVERYTHING = slice(0, None)
PROMPTS = ["a", "a fine and happy day", "what a pain to see this again and again, what a joy", "so very bad", "great"]


def read(folder: Path) -> list[dict]:
    return [row for path in sorted(folder.glob("*.parquet")) for row in pyarrow.parquet.read_table(path).to_pylist()]


def ask(generator: SoftLabels | TeacherText, teacher: LiveModel, data: FileDataset, share=EVERYTHING) -> list[dict]:
    return [row for batch in generator(teacher.eval(), data.load(), share) for row in batch]


@pytest.fixture
def labelled(tmp_path) -> FileDataset:
    """Every third row has no label."""
    made = [row | {"label": None if index % 3 == 0 else row["label"]} for index, row in enumerate(rows(20))]
    return FileDataset(train=str(write_jsonl(tmp_path / "train.jsonl", made)), labels=LABELS)


@pytest.fixture
def prompts(tmp_path) -> FileDataset:
    path = write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": text, "completion": "x"} for text in PROMPTS])
    return FileDataset(train=str(path), columns={"prompt": "prompt", "completion": "completion"})


@pytest.fixture
def texts(tmp_path) -> FileDataset:
    path = write_jsonl(tmp_path / "texts.jsonl", [{"text": text} for text in PROMPTS])
    return FileDataset(train=str(path), columns={"text": "text"})


def ending(teacher: LiveModel, bias: float) -> LiveModel:
    """Make a model that is the likelier to end its text, the larger the bias is."""
    head = torch.nn.Linear(teacher.model.config.hidden_size, teacher.model.config.vocab_size)
    with torch.no_grad():
        head.weight.copy_(20 * teacher.model.lm_head.weight)
        head.bias.zero_()
        head.bias[teacher.tokenizer.eos_token_id] = bias
    teacher.model.lm_head = head
    return teacher


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


def test_each_process_answers_its_share(labelled, prompts):
    whole = ask(SoftLabels(batch_size=3), classifier(), labelled)
    parts = [ask(SoftLabels(batch_size=3), classifier(), labelled, slice(*ends)) for ends in ((0, 7), (7, 20))]
    assert [row["text"] for part in parts for row in part] == [row["text"] for row in whole]
    halves = [ask(TeacherText(max_new_tokens=2), language_model(), prompts, slice(*ends)) for ends in ((0, 2), (2, 5))]
    assert [{row["prompt"] for row in half} for half in halves] == [set(PROMPTS[:2]), set(PROMPTS[2:])]


@torch.no_grad()
@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_a_greedy_answer_is_that_of_the_prompt_alone(prompts, batch_size):
    teacher = ending(language_model(seed=2), 3.0)
    answers = ask(TeacherText(batch_size=batch_size, max_new_tokens=12, temperature=0), teacher, prompts)
    assert sorted(row["prompt"] for row in answers) == sorted(PROMPTS)
    for row in answers:
        ids = torch.tensor([teacher.tokenizer(row["prompt"])["input_ids"]])
        for _ in range(12):  # the most likely token, again and again, without a cache or padding
            ids = torch.cat([ids, teacher.model(input_ids=ids).logits[:, -1:].argmax(dim=-1)], dim=1)
            if ids[0, -1] == teacher.tokenizer.eos_token_id:
                break
        new = ids[0, len(teacher.tokenizer(row["prompt"])["input_ids"]) :].tolist()
        finished = new[-1] == teacher.tokenizer.eos_token_id
        assert (row["completion"], row["finished"]) == (
            teacher.tokenizer.decode(new[:-1] if finished else new),
            finished,
        )
    assert len({row["completion"] for row in answers}) > 1
    assert {row["finished"] for row in answers} == {True, False}


def test_a_continuation_begins_with_its_text(texts):
    found = ask(TeacherText(prompt_tokens=6, max_new_tokens=5), language_model(), texts)
    ours = language_model().tokenizer
    heads = {ours.decode(ours(text)["input_ids"][:6]) for text in PROMPTS}
    assert all(any(row["text"].startswith(head) for head in heads) for row in found)
    assert len(found) == len(PROMPTS)


def test_an_unfinished_continuation_teaches_no_end(tmp_path):
    path = write_jsonl(tmp_path / "t.jsonl", [{"text": "a day", "finished": done} for done in (True, False)])
    loaded = FileDataset(train=str(path), columns={"text": "text", "finished": "finished"}).load()
    tokenizer = language_model().tokenizer
    ids = CausalLM().encode(loaded.split("train")[:], tokenizer, None)["input_ids"]
    assert ids[0] == [*ids[1], tokenizer.eos_token_id]


def test_sampling_follows_the_seed(prompts):
    def sampled(seed: int) -> list[dict]:
        torch.manual_seed(torch.seed())
        return ask(TeacherText(seed=seed, temperature=1.0, max_new_tokens=8, samples=2), language_model(), prompts)

    first = sampled(1)
    assert [row["prompt"] for row in first].count("great") == 2
    assert len({row["completion"] for row in first}) > len(PROMPTS)
    assert sampled(1) == first
    assert sampled(2) != first


@pytest.mark.parametrize(
    "settings",
    [{"batch_size": 0}, {"max_new_tokens": 0}, {"temperature": -1.0}, {"top_p": 0.0}, {"samples": 2, "temperature": 0}],
)
def test_settings_that_cannot_work_are_refused(settings):
    with pytest.raises(UserError, match=r"^generate\."):
        TeacherText(**settings)
    with pytest.raises(UserError, match=r"^generate\.labels"):
        SoftLabels(labels="guess")


def test_a_task_of_the_other_kind_is_refused():
    TeacherText().check(CausalLM())
    SoftLabels().check(SequenceClassification())
    with pytest.raises(UserError, match=r"^generate: causal_lm has no soft labels"):
        SoftLabels().check(CausalLM())
    with pytest.raises(UserError, match=r"^generate: a sequence_classification teacher writes no text"):
        TeacherText().check(SequenceClassification())


def test_a_part_is_written_whole_or_not_at_all(tmp_path):
    def batches(fail: bool):
        yield [{"text": "a", "finished": True}]
        yield []
        if fail:
            raise KeyboardInterrupt
        yield [{"text": "b", "finished": False}]

    with pytest.raises(KeyboardInterrupt):
        write_part(tmp_path / "pseudo", 0, batches(fail=True), None)
    assert not list((tmp_path / "pseudo").iterdir())
    assert write_part(tmp_path / "pseudo", 0, batches(fail=False), None) == 2
    assert read(tmp_path / "pseudo") == [{"text": "a", "finished": True}, {"text": "b", "finished": False}]


def test_the_order_of_the_classes_travels_with_the_logits(tmp_path):
    """A teacher whose classes are not in alphabetical order must not be read as if they were."""
    asked = [{"text": "a", "label": "neutral", "teacher_logits": [0.0, 1.0, 2.0]}, {"text": "b", "label": None}]
    asked[1]["teacher_logits"] = [3.0, 0.0, 0.0]
    write_part(tmp_path, 0, [asked], ["positive", "neutral", "negative"])
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


def config(folder: Path, output: str, **nodes) -> Config:
    made = Config(output_dir=str(folder / output), train=TrainSettings(max_steps=6, batch_size=8, log_every=1))
    made.train.learning_rate = 1e-2
    made.task = {"_target_": SEQUENCE_CLASSIFICATION, "max_length": 32}
    made.dataset = {"_target_": FILES, **data_files(folder / "data"), "labels": LABELS}
    made.teacher = {"_target_": "distillkit.models.teachers.LiveTeacher", "path": str(folder / "teacher")}
    for name, node in nodes.items():
        setattr(made, name, node)
    return made


def test_learning_from_recorded_soft_labels_is_learning_from_the_teacher(tmp_path):
    save(classifier(), tmp_path / "teacher")
    save(classifier(layers=1, seed=3), tmp_path / "student")
    generate = {"_target_": "distillkit.generation.soft_labels.SoftLabels", "batch_size": 7}
    report = generate_pseudo.main(config(tmp_path, "soft", generate=generate))
    assert (report["rows"], report["cut_off"]) == (40, 0)
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


@pytest.fixture
def answering(tmp_path, prompts, monkeypatch) -> Config:
    save(language_model(), tmp_path / "teacher")
    columns = {"prompt": "prompt", "completion": "completion"}
    made = config(tmp_path, "answers")
    made.task = {"_target_": "distillkit.tasks.causal_lm.CausalLM", "max_length": 32}
    made.dataset = {"_target_": FILES, "train": str(tmp_path / "prompts.jsonl"), "columns": columns}
    made.generate = {"_target_": "distillkit.generation.text.TeacherText", "batch_size": 2, "max_new_tokens": 6}
    return made


def script(monkeypatch: pytest.MonkeyPatch, *finished: bool) -> None:
    """Let the teacher's answers, in turn, be finished or not; an error ends the script."""
    left = list(finished)

    def answer(self: TeacherText, asked: list[list[int]], teacher: LiveModel) -> list[tuple[str, bool]]:
        return [(f"answer {len(left)}", left.pop(0)) for _ in asked]

    monkeypatch.setattr(TeacherText, "_answer", answer)


def test_answers_that_were_cut_off_are_left_out_and_counted(answering, tmp_path, monkeypatch):
    script(monkeypatch, True, False, True, False, True)
    report = generate_pseudo.main(answering)
    assert (report["rows"], report["cut_off"]) == (3, 2)
    assert [row["completion"] for row in read(tmp_path / "answers/pseudo")] == ["answer 5", "answer 3", "answer 1"]
    assert "2 cut-off answers left out" in read_report(tmp_path / "answers")["generate-pseudo"]["markdown"]


def test_answers_that_say_nothing_are_left_out_and_counted(answering, tmp_path, monkeypatch):
    monkeypatch.setattr(
        TeacherText, "_answer", lambda self, asked, teacher: [(" \n"[: len(asked)], True) for _ in asked]
    )
    with pytest.raises(UserError, match=r"^generate\.max_new_tokens"):
        generate_pseudo.main(answering)
    answers = iter(["a", "", "b", " ", "c"])
    monkeypatch.setattr(TeacherText, "_answer", lambda self, asked, teacher: [(next(answers), True) for _ in asked])
    report = generate_pseudo.main(answering)
    assert (report["rows"], report["cut_off"], report["empty"]) == (3, 0, 2)
    assert "2 empty answers left out" in read_report(tmp_path / "answers")["generate-pseudo"]["markdown"]


def test_no_answer_at_all_is_an_error_and_not_an_empty_dataset(answering, tmp_path, monkeypatch):
    script(monkeypatch, *[False] * 5)
    with pytest.raises(UserError, match=r"^generate\.max_new_tokens"):
        generate_pseudo.main(answering)
    assert not read_report(tmp_path / "answers")
    assert not list((tmp_path / "answers").rglob("*.parquet"))


def test_an_interrupted_generation_starts_again_and_leaves_nothing_half_written(answering, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        script(patch, True, True, True)  # and then an IndexError
        with pytest.raises(IndexError):
            generate_pseudo.main(answering)
    assert not list((tmp_path / "answers/pseudo").iterdir())
    stale = [[{"prompt": "of a second process", "completion": "that had finished"}]]
    write_part(tmp_path / "answers/pseudo", 1, stale, None)
    script(monkeypatch, *[True] * 5)
    assert generate_pseudo.main(answering)["rows"] == len(read(tmp_path / "answers/pseudo")) == 5
    assert generate_pseudo.main(answering)["rows"] == 5  # finished: nobody is asked again


def test_answers_mix_with_the_original_data_at_the_chosen_ratio(answering, tmp_path, monkeypatch, prompts):
    script(monkeypatch, *[True] * 5)
    generate_pseudo.main(answering)
    columns = {"prompt": "prompt", "completion": "completion"}
    pseudo = FileDataset(train=str(tmp_path / "answers/pseudo/*.parquet"), columns=columns)
    mixed = MixedDataset({"original": {"dataset": prompts}, "pseudo": {"dataset": pseudo, "weight": 0.6}}).load()
    completions = mixed.split("train")["completion"][:]
    assert completions[:5] == ["x"] * 5
    assert len(completions) == 8
    assert all(text.startswith("answer") for text in completions[5:])
