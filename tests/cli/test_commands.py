"""The commands, really run: what they write, and what they refuse in one line without writing anything."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet
import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
)

from distillkit.commands import train
from tests.terminal import Outcome, distillkit
from tests.tiny import LABELS, bert, classifier, data_files, events, language_model, rows, save, tokenizer, write_jsonl

DATA = ["dataset.train=data/train.jsonl", "dataset.validation=data/validation.jsonl", "task.max_length=32"]
SHORT = ["train.max_steps=4", "train.batch_size=8", "train.learning_rate=0.01", "train.log_every=1"]
STUDENT = ["student.path=student"]
TEACHER = ["teacher=live", "teacher.path=teacher", "loss=kd"]
TRAIN = ["train", *DATA, *SHORT, *STUDENT]
TEXT = ["task=causal_lm", "dataset.columns.label=null"]
MODULES = "loss.terms.hidden.loss.modules"
COMPRESS = ["compress", *DATA, "compress=prune", *TEACHER, "evaluate.speed=false", "evaluate.resamples=0"]


@pytest.fixture(scope="module", autouse=True)
def kit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working directory: models, data, and a finished run in `done`."""
    folder = tmp_path_factory.mktemp("kit")
    save(classifier(), folder / "teacher")
    save(classifier(layers=1, seed=1), folder / "student")
    save(language_model(), folder / "writer")
    bert(labels=3).save_pretrained(folder / "three")
    AutoTokenizer.from_pretrained(folder / "teacher").save_pretrained(folder / "three")
    deberta(folder / "own_attention")
    stranger = classifier(layers=1)
    stranger.tokenizer.add_tokens(["<new>"])
    save(stranger, folder / "stranger")
    for name, speller in (("speller", classifier(layers=1)), ("spelling_writer", language_model())):
        speller.tokenizer = tokenizer(258)  # a token a letter
        save(speller, folder / name)
    save(classifier(), folder / "broken")
    weights = folder / "broken/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    data_files(folder / "data")
    made = rows(6)
    write_jsonl(folder / "typo.jsonl", [*made, {"text": "so", "label": "goood"}])
    write_jsonl(folder / "no_text.jsonl", [{"text": "fine", "label": "good"}, {"text": None, "label": "bad"}])
    write_jsonl(folder / "unlabelled.jsonl", [{"text": row["text"], "label": None} for row in made])
    write_jsonl(folder / "other_column.jsonl", [{"review": row["text"], "label": row["label"]} for row in made])
    (folder / "empty.jsonl").write_text("", encoding="utf-8")
    (folder / "header.csv").write_text("text,label\n", encoding="utf-8")
    (folder / "ragged.csv").write_text("text,label\nfine,good\nbad,bad,bad\n", encoding="utf-8")
    (folder / "cut.jsonl").write_text('{"text": "fine", "label": "good"}\n\n{"text": "fi\n', encoding="utf-8")
    (folder / "table.xlsx").write_text("?", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in ("RANK", "LOCAL_RANK", "DISTILLKIT_TRUST"):
            patch.delenv(name, raising=False)
        run(*TRAIN, "output_dir=done", "train.checkpoint_every=2")
        yield folder


def deberta(folder: Path) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    DebertaV2ForSequenceClassification(DebertaV2Config(vocab_size=320, pad_token_id=1, **sizes)).save_pretrained(folder)
    tokenizer().save_pretrained(folder)


def run(*argv: str) -> Outcome:
    result = distillkit(*argv)
    assert (result.code, result.err) == (0, "")
    return result


def weights(folder: str) -> bytes:
    return Path(folder, "model/model.safetensors").read_bytes()


def files() -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in Path().rglob("*")}


REFUSED = {
    "missing file": ([*TRAIN, "dataset.train=nowhere.csv"], "dataset.train: no such file: nowhere.csv"),
    "nothing matches": ([*TRAIN, "dataset.train='*.tsv'"], "dataset.train: no such file: *.tsv"),
    "file type": ([*TRAIN, "dataset.train=table.xlsx"], "table.xlsx: unknown file type '.xlsx'; use .jsonl"),
    "missing column": (
        [*TRAIN, "dataset.train=other_column.jsonl"],
        "dataset.columns.text: no column 'text' in other_column.jsonl; its columns are: review, label",
    ),
    "unknown column": ([*TRAIN, "+dataset.columns.lable=x"], "dataset.columns: unknown column 'lable'; did you mean"),
    "no column mapped": ([*TRAIN, "dataset.columns.text=null"], "sequence_classification needs the columns text"),
    "empty file": ([*TRAIN, "dataset.train=empty.jsonl"], "empty.jsonl: there are no rows in it"),
    "only a header": ([*TRAIN, "dataset.train=header.csv"], "header.csv: there are no rows in it"),
    "broken line": ([*TRAIN, "dataset.train=cut.jsonl"], "cut.jsonl:3: not valid JSON"),
    "ragged table": ([*TRAIN, "dataset.train=ragged.csv"], "ragged.csv: cannot be read: CSV parse error"),
    "text is null": ([*TRAIN, "dataset.train=no_text.jsonl"], "no_text.jsonl:2: text is missing"),
    "unknown label": (
        [*TRAIN, "dataset.train=typo.jsonl", "dataset.labels=[bad,good]"],
        "typo.jsonl:7: label 'goood' is not among the declared ones; did you mean 'good'?",
    ),
    "label only in validation": (
        [*TRAIN, "dataset.validation=typo.jsonl"],
        "typo.jsonl:7: label 'goood' is not among the declared ones",
    ),
    "no labels": (
        [*TRAIN, "dataset.train=unlabelled.jsonl"],
        "dataset.labels: the train split of dataset 'kit0' has no labels",
    ),
    "vocabularies": (
        [*TRAIN, *TEACHER, "student.path=stranger"],
        "student: student and teacher have different vocabularies: 321 and 320 tokens, and id 320 is '<new>'",
    ),
    "classes": ([*TRAIN, *TEACHER, "teacher.path=three"], "teacher.path: the model has other classes"),
    "missing teacher": ([*TRAIN, *TEACHER, "teacher.path=./nowhere/model"], "teacher.path: no such model folder"),
    "missing teacher on the hub": ([*TRAIN, *TEACHER, "teacher.path=no/where"], "teacher.path: no model at 'no/where'"),
    "missing student": ([*TRAIN, "student.path=outputs/no/model"], "student.path: no such model folder"),
    "damaged teacher": ([*TRAIN, *TEACHER, "teacher.path=broken"], "teacher.path: cannot load the model at 'broken'"),
    "folder without a model": ([*TRAIN, "student.path=data"], "student.path: no model at 'data'"),
    "no teacher": ([*TRAIN, "loss=kd"], "loss: the loss compares with a teacher, and there is none; set teacher=live"),
    "no teacher to copy": ([*TRAIN[:-1], "student=from_teacher"], "student: the student is made from a teacher"),
    "too many layers": (
        [*TRAIN[:-1], *TEACHER, "student=from_teacher", "student.layers=5"],
        "student.layers: the teacher has no layer 4; its layers are 0 … 1",
    ),
    "no recorded logits": ([*TRAIN, "teacher=recorded", "loss=kd"], "carry no teacher_logits"),
    "features of recorded answers": (
        [*TRAIN, "teacher=recorded", "loss=semantic"],
        "loss.terms.hidden: this teacher shows nothing but its logits; set teacher=live",
    ),
    "features of nobody": ([*TRAIN, "loss=minilm"], "loss: the loss compares with a teacher, and there is none"),
    "bad layer map, teacher broken too": (
        [*TRAIN, *TEACHER, "loss=semantic", "loss.terms.hidden.loss.layers=[[0,7]]", "teacher.path=broken"],
        "loss.terms.hidden.loss.layers: the teacher has no layer 7; its layers are 0 … 1",
    ),
    "unknown layer map": (
        [*TRAIN, *TEACHER, "loss=semantic", "loss.terms.hidden.loss.layers=unifrom"],
        "loss.terms.hidden.loss: layers: unknown layer map 'unifrom'; did you mean 'uniform'?",
    ),
    "relation heads": (
        [*TRAIN, *TEACHER, "loss=minilmv2", "loss.terms.relations.loss.heads=5"],
        "loss.terms.relations.loss.heads: 5 does not divide",
    ),
    "no such module": (
        [*TRAIN, *TEACHER, "loss=semantic", "~loss.terms.hidden.loss.layers", f"+{MODULES}=[[bert.poler,bert.pooler]]"],
        "BertForSequenceClassification has no module 'bert.poler'; did you mean 'bert.pooler'?",
    ),
    "modules of other shapes": (
        [*TRAIN, *TEACHER, "loss=semantic", "~loss.terms.hidden.loss.layers", f"+{MODULES}=[[classifier,bert.pooler]]"],
        "classifier gives",
    ),
    "attention that is its own": (
        [*TRAIN, *TEACHER, "loss=attention_transfer", "student.path=own_attention"],
        "student: DebertaV2ForSequenceClassification does not show layers.0.key",
    ),
    "too long": (
        [*TRAIN, "task.max_length=512"],
        "task.max_length: 512 tokens are more than the model's 128 positions",
    ),
    "untrusted": ([*TRAIN, "loss.terms.hard.loss._target_=os.system"], "'os.system' is outside the trusted packages"),
    "unknown argument": ([*TRAIN, "+task.max_len=3"], "has no argument 'max_len'; did you mean 'max_length'?"),
    "value out of range": ([*TRAIN, "train.batch_size=0"], "train.batch_size"),
    "metric": ([*TRAIN, "train.best_metric=bleu"], "train.best_metric: sequence_classification has no metric 'bleu'"),
    "another run": (
        [*TRAIN, "output_dir=done", "train.max_steps=5", "train.checkpoint_every=2"],
        "output_dir: done holds another run (train.max_steps: 4 -> 5); choose another output_dir, or set overwrite",
    ),
    "somebody's model": ([*TRAIN, "output_dir=home"], "output_dir: home already has model"),
    "checkpoint of another config": (
        [*TRAIN, "resume=done/checkpoints/step-000002"],
        "resume: checkpoint done/checkpoints/step-000002 was written by a run with another config",
    ),
    "no checkpoint": ([*TRAIN, "resume=done/checkpoints/step-7"], "resume: no such checkpoint"),
    "not writable": ([*TRAIN, "output_dir=typo.jsonl/out"], "output_dir: cannot write to typo.jsonl/out (Not a direct"),
    "no models": (["eval", *DATA], "evaluate.models: no model is given"),
    "missing model": (["eval", *DATA, "+evaluate.models.a=./no"], "evaluate.models.a: no such model folder: ./no"),
    "a model without a plus": (
        ["eval", *DATA, "evaluate.models.a=teacher"],
        "evaluate.models.a: unknown key; write +evaluate.models.a=… to add it",
    ),
    "language models of two vocabularies": (
        ["eval", *DATA, *TEXT, "+evaluate.models.a=writer", "+evaluate.models.b=spelling_writer"],
        "evaluate.models.b: another vocabulary cuts the texts of the evaluation into other pieces",
    ),
    "untrained head": (
        ["eval", *DATA, *TEXT, "+evaluate.models.a=teacher"],
        "evaluate.models.a: ",
    ),
    "no such baseline": (
        ["eval", *DATA, "+evaluate.models.a=teacher", "evaluate.baseline=b"],
        "evaluate.baseline: there is no model 'b'",
    ),
    "nothing to evaluate on": (
        ["eval", "dataset=custom", "+evaluate.models.a=teacher"],
        "dataset: there is nothing to evaluate on; choose a dataset, or evaluate=lm_eval evaluate.tasks=[…]",
    ),
    "no such split": (
        ["eval", *DATA, "+evaluate.models.a=teacher", "evaluate.split=test"],
        "dataset: dataset 'data' has no test split; it has: train, validation",
    ),
    "nobody to ask": (["generate-pseudo", *DATA], "teacher: there is no teacher to ask; set teacher=live"),
    "soft labels of text": (
        ["generate-pseudo", *DATA, *TEXT, "teacher=live", "teacher.path=writer"],
        "generate: causal_lm has no soft labels to write; use generate=text",
    ),
    "text of a classifier": (
        ["generate-pseudo", *DATA, "teacher=live", "teacher.path=teacher", "generate=text"],
        "generate: a sequence_classification teacher writes no text",
    ),
    "nothing to compress": (COMPRESS, "compress.model: no model is given"),
    "no such model to compress": ([*COMPRESS, "compress.model=./no"], "compress.model: no such model folder: ./no"),
    "no steps": (["compress", *DATA, "compress.model=student"], "compress.steps: there are no steps"),
    "sparsity": (
        [*COMPRESS, "compress.model=student", "compress.steps.prune.sparsity=2"],
        "compress.steps.prune",
    ),
    "vocabularies in retraining": ([*COMPRESS, "compress.model=stranger"], "different vocabularies: 321 and 320"),
}


@pytest.fixture(scope="module")
def home() -> None:
    """A folder where somebody keeps a model of their own."""
    Path("home/model").mkdir(parents=True)
    Path("home/model/precious").write_text("!", encoding="utf-8")


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_costs_one_line_and_writes_nothing(case: str, home: None) -> None:
    argv, expected = REFUSED[case]
    before = files()
    result = distillkit(*argv)
    assert result.code == 2, result
    assert result.err.startswith("distillkit: error: ")
    assert result.err.count("\n") == 1
    assert expected in result.err
    assert files() == before


def test_the_traceback_is_there_for_those_who_ask() -> None:
    result = distillkit(*TRAIN, "dataset.train=nowhere.csv", "--traceback")
    assert result.code == 2
    assert "Traceback" in result.err
    assert result.err.splitlines()[-1].startswith("distillkit: error: dataset.train: no such file")


def test_a_bad_stage_is_found_before_the_first_one_starts() -> None:
    recipe = "# R.\n# r\ndefaults: [config, {override teacher: live}, {override loss: kd}, _self_]\nname: r\n"
    recipe += "teacher: {path: teacher}\nstudent: {path: student}\ntask: {max_length: 32}\n"
    recipe += "stages: {first: {command: train}, second: {command: train, set: {loss: {alpha: high}}}}\n"
    Path("r.yaml").write_text(recipe, encoding="utf-8")
    before = files()
    result = distillkit("run", "r.yaml", *DATA, *SHORT)
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "stages.second" in result.err
    assert files() == before


def test_train_writes_what_the_readme_says() -> None:
    names = {path.name for path in Path("done").iterdir()}
    reports = {"report.json", "report.md", "report.html"}
    assert names == {"train.yaml", "metrics.jsonl", "checkpoints", "model"} | reports
    report = json.loads(Path("done/report.json").read_text())["train"]
    assert report["metrics"].keys() == {"accuracy", "macro_f1", "loss"}
    assert run(*TRAIN, "output_dir=done", "train.checkpoint_every=2").out == "already finished: done/model\n"


def test_the_same_seed_gives_the_same_run_to_the_last_bit() -> None:
    distil = [*TRAIN, *TEACHER, "output_dir=${name}", "train.precision=bf16"]
    for name in ("once", "twice"):
        run(*distil, f"name={name}")
    run(*distil, "name=other", "train.seed=7")
    assert events(Path("once")) == events(Path("twice")) != events(Path("other"))
    assert weights("once") == weights("twice") != weights("other")


def test_a_run_may_begin_with_a_checkpoint_that_is_named() -> None:
    same = [*TRAIN, "train.checkpoint_every=2", "name=distillkit"]
    result = run(*same, "output_dir=resumed", "resume=done/checkpoints/step-000002")
    assert weights("resumed") == weights("done")
    steps = [event["step"] for event in events(Path("resumed")) if event["event"] == "train"]
    assert steps == [3, 4], result.out


def test_an_interrupted_run_goes_on_unless_it_shall_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    command = [*TRAIN, "train.checkpoint_every=2", "output_dir=again"]
    with monkeypatch.context() as patch:
        patch.setattr(train, "_report", interrupted)
        stopped = distillkit(*command)
    assert (stopped.code, stopped.err) == (130, "distillkit: interrupted\n")
    assert not Path("again/model").exists()
    assert "resuming" not in run(*command, "resume=never").out
    assert weights("again") == weights("done")


def test_overwriting_throws_the_other_run_away() -> None:
    run(*TRAIN, "output_dir=over", "train.checkpoint_every=1")
    run(*TRAIN, "output_dir=over", "train.max_steps=3", "train.checkpoint_every=null", "overwrite=true")
    assert not list(Path("over/checkpoints").glob("step-*"))
    assert [event["step"] for event in events(Path("over")) if event["event"] == "train"] == [1, 2, 3]


def test_a_sweep_has_a_folder_for_each_job() -> None:
    run(*TRAIN, "name=sweep", "--multirun", "train.seed=1,2")
    jobs = [Path("outputs/sweep", str(number)) for number in (0, 1)]
    assert [json.loads((job / "report.json").read_text())["train"]["seed"] for job in jobs] == [1, 2]
    assert weights(str(jobs[0])) != weights(str(jobs[1]))


def test_eval_compares_with_the_first_model() -> None:
    models = ["+evaluate.models.teacher=teacher", "+evaluate.models.done=done/model"]
    few = ["evaluate.speed_rounds=1", "evaluate.memory=false", "evaluate.resamples=100"]
    out = run("eval", *DATA, *models, *few, "output_dir=compared").out
    models = json.loads(Path("compared/report.json").read_text())["eval"]["models"]
    assert list(models) == ["teacher", "done"]
    assert models["teacher"]["kept"] == 1.0
    expected = models["done"]["metrics"]["accuracy"] / models["teacher"]["metrics"]["accuracy"]
    assert models["done"]["kept"] == pytest.approx(expected)
    assert models["done"]["parameters"] == sum(t.numel() for t in load_file("done/model/model.safetensors").values())
    for word in (
        "accuracy",
        "kept",
        "agreement",
        "parameters",
        "size",
        "latency",
        "rows/s",
        "± 95 %",
        "Δ teacher",
        "KL",
    ):
        assert word in out


def test_models_of_two_vocabularies_each_read_the_texts_their_way() -> None:
    def evaluated(*models: str) -> dict:
        named = [f"+evaluate.models.{name}={name}" for name in models]
        run("eval", *DATA, *named, "evaluate.speed=false", "evaluate.resamples=0", "output_dir=" + "-".join(models))
        return json.loads(Path("-".join(models), "report.json").read_text())["eval"]["models"]

    beside, alone = evaluated("teacher", "speller")["speller"], evaluated("speller")["speller"]
    assert beside["metrics"] == pytest.approx(alone["metrics"])
    assert 0 < beside["agreement"] <= 1
    assert beside["divergence"] > 0


def test_eval_measures_quality_likeness_and_cost() -> None:
    """Every column is there; the baseline is found by its name; the differences are written."""
    models = [f"+evaluate.models.{name}={path}" for name, path in (("teacher", "teacher"), ("alone", "student"))]
    more = ["+evaluate.models.done=done/model", "evaluate.speed_rounds=1", "evaluate.speed_batch_sizes=[4]"]
    run("eval", *DATA, *models, *more, "output_dir=measured", "evaluate.resamples=200", "evaluate.differences=7")
    report = json.loads(Path("measured/report.json").read_text())["eval"]
    assert (report["teacher"], report["baseline"]) == ("teacher", "alone")
    assert report["resampling"]["count"] == 200
    done = report["models"]["done"]
    low, high = done["intervals"]["accuracy"]
    assert low <= done["metrics"]["accuracy"] <= high
    for other in ("teacher", "alone"):
        tested, metric = done["against"][other], report["models"][other]["metrics"]["accuracy"]
        assert tested["value"] == pytest.approx(done["metrics"]["accuracy"] - metric)
        assert tested["low"] <= tested["value"] <= tested["high"]
        assert 0 < tested["p"] <= 1
    assert done["divergence"] > 0
    assert 0 < done["calibration"]["error"] < 1
    assert sum(map(sum, done["confusion"])) == sum(done["calibration"]["counts"]) == report["rows"] == 20
    assert done["memory"] > 2**20
    assert done["latency_ms"] <= done["latency_p95_ms"]
    assert list(done["rows_per_second"]) == ["4"]
    lines = [json.loads(line) for line in Path("measured/differences.jsonl").read_text().splitlines()]
    assert [line["name"] for line in lines] == ["alone"] * 7 + ["done"] * 7
    assert all(line["inputs"]["text"] and line["label"] in LABELS for line in lines)
    assert "done" in Path("measured/report.html").read_text()


def test_language_models_stand_side_by_side() -> None:
    save(language_model(seed=1), Path("writer_two"))
    models = ["+evaluate.models.one=writer", "+evaluate.models.two=writer_two", "evaluate.speed=false"]
    prompts = ["evaluate.prompts=['what a','so very']", "evaluate.sample_tokens=4"]
    run("eval", *DATA, *TEXT, "task.max_length=32", *models, *prompts, "output_dir=side")
    report = json.loads(Path("side/report.json").read_text())["eval"]
    assert [sample["prompt"] for sample in report["samples"]] == ["what a", "so very"]
    assert all(list(sample["continuations"]) == ["one", "two"] for sample in report["samples"])
    two = report["models"]["two"]
    assert (two["divergence"] > 0, two["latency_ms"], two["memory"]) == (True, None, None)
    assert sum(two["calibration"]["counts"]) > 100
    first = json.loads(Path("side/differences.jsonl").read_text().splitlines()[0])
    assert first["measure"] == "difference of losses"
    assert first["difference"] == pytest.approx(abs(first["model"]["loss"] - first["teacher"]["loss"]))


def test_compress_measures_before_and_after_and_holds_the_zeros() -> None:
    run(*COMPRESS, *SHORT, "compress.model=done/model", "output_dir=small")
    models = json.loads(Path("small/report.json").read_text())["compress"]["models"]
    assert list(models) == ["uncompressed", "prune", "retrain"]
    pruned, retrained = (load_file(f"small/compressed/{name}/model.safetensors") for name in ("prune", "retrain"))
    zeros = {name: tensor == 0 for name, tensor in pruned.items()}
    assert sum(int(mask.sum()) for mask in zeros.values()) > 500
    assert all((retrained[name][mask] == 0).all() for name, mask in zeros.items())
    assert any(not pruned[name].equal(retrained[name]) for name in pruned)


def test_a_student_learns_what_happens_inside_its_teacher() -> None:
    """Its projectors resume with it and stay out of its folder; what teaches no head is not evaluated."""
    wide = ["student=from_config", "+student.config.hidden_size=8", "+student.config.intermediate_size=16"]
    command = ["train", *DATA, *SHORT, *TEACHER, *wide, "loss=tinybert", "train.checkpoint_every=2"]
    result = run(*command, "output_dir=inside", "name=inside")
    assert "the student's head is left as it is, and not evaluated" in result.out
    lines = events(Path("inside"))
    assert {line["event"] for line in lines} == {"train"}
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert set(lines[0]["terms"]) == {"embeddings", "hidden", "attention"}
    _, info = AutoModelForSequenceClassification.from_pretrained("inside/model", output_loading_info=True)
    assert not any(info.values())
    checkpoint = load_file("inside/checkpoints/step-000002/weights.safetensors")
    assert any(name.startswith("objective.") for name in checkpoint)
    run(*command, "output_dir=resumed_inside", "name=inside", "resume=inside/checkpoints/step-000002")
    assert weights("resumed_inside") == weights("inside")


def test_a_teacher_without_a_head_can_teach_what_happens_inside() -> None:
    body = AutoModel.from_pretrained("teacher")
    body.save_pretrained("body")
    AutoTokenizer.from_pretrained("teacher").save_pretrained("body")
    run(*TRAIN, "teacher=live", "teacher.path=body", "loss=minilm", "output_dir=from_body")
    assert distillkit(*TRAIN, *TEACHER, "teacher.path=body", "output_dir=headless").code == 2


def test_retraining_may_look_inside() -> None:
    inside = ["loss=semantic", "compress.check_reload=false", "output_dir=small_inside"]
    run(*COMPRESS, *SHORT, "compress.model=done/model", *inside)


def test_soft_labels_can_be_learned_from_in_the_next_command() -> None:
    run("generate-pseudo", *DATA, "teacher=live", "teacher.path=teacher", "output_dir=soft")
    described = json.loads(Path("soft/pseudo/_pseudo.json").read_text())
    assert (described["rows"], described["teacher"], described["labels"]) == (40, "teacher", LABELS)
    pseudo = [
        "dataset=pseudo",
        "dataset.train='soft/pseudo/*.parquet'",
        "teacher=recorded",
        "loss=kd",
        "task.max_length=32",
    ]
    run("train", *pseudo, *SHORT, *STUDENT, "output_dir=softly")
    assert events(Path("softly"))[0]["terms"]["kd"] > 0


def test_prompts_need_no_answers_to_be_answered() -> None:
    columns = ["dataset.columns.text=null", "dataset.columns.label=null", "dataset.columns.prompt=text"]
    teacher = ["task=causal_lm", "task.max_length=32", "teacher=live", "teacher.path=writer"]
    much = ["generate=text", "generate.max_new_tokens=64", "generate.temperature=1.5", "generate.top_p=1.0"]
    run("generate-pseudo", "dataset.train=data/train.jsonl", *columns, *teacher, *much, "output_dir=answers")
    report = json.loads(Path("answers/report.json").read_text())["generate-pseudo"]
    assert report["rows"] > 0
    assert report["rows"] + sum(report["rejected"].values()) == report["generated"] == 40
    columns = ["dataset.columns.text=null", "dataset.columns.finished=null"]
    columns += ["dataset.columns.prompt=prompt", "dataset.columns.completion=completion"]
    files = ["dataset=pseudo_text", "dataset.train='answers/pseudo/*.parquet'", "student.path=writer"]
    run("train", "task=causal_lm", "task.max_length=128", *files, *columns, *SHORT, "output_dir=answered")


def test_continuations_can_be_learned_from_in_the_next_command() -> None:
    teacher = ["task=causal_lm", "task.max_length=32", "teacher=live", "teacher.path=writer"]
    few = ["generate=text", "generate.max_new_tokens=4", "generate.prompt_tokens=5", "generate.limit=9"]
    run("generate-pseudo", *DATA, "dataset.columns.label=null", *teacher, *few, "output_dir=continued")
    files = ["dataset=pseudo_text", "dataset.train='continued/pseudo/*.parquet'", "student.path=writer"]
    run("train", "task=causal_lm", "task.max_length=32", *files, *SHORT, "train.batch_size=9", "output_dir=learned")
    texts = pyarrow.parquet.read_table("continued/pseudo/part-00000.parquet").to_pylist()
    lengths = [len(ids) for ids in AutoTokenizer.from_pretrained("writer")([row["text"] for row in texts])["input_ids"]]
    assert not all(row["finished"] for row in texts)
    ends = sum(row["finished"] for row in texts)  # a text that was cut off gets no end-of-text to predict
    assert events(Path("learned"))[0]["items"] == sum(lengths) - len(texts) + ends
