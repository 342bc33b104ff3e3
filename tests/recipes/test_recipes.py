"""Every recipe runs from end to end with tiny models, skips what is done, and goes on where it was stopped."""

from __future__ import annotations

import shutil
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest
import transformers
import yaml

from distillkit.arguments import recipe_files
from distillkit.commands import run
from distillkit.data import stdlib
from distillkit.losses.objective import Objective
from distillkit.reporting.files import read_report
from tests.terminal import Outcome, distillkit

SHORT = ["train.max_steps=4", "train.learning_rate=0.01", "evaluate.speed=false", "evaluate.resamples=0"]
SHORT += ["compress.check_reload=false"]  # classify does
RESAMPLE = "evaluate.resamples=100"  # once for each task
PRUNE = ["compress=prune", "~stages.eval.set.evaluate.models.int8"]  # test_readme exports to int8
SMOKE = {
    "quickstart": [
        RESAMPLE,
        "dataset.limit=4",
        "task.max_length=64",
        "stages.teacher.set.train.max_steps=4",
        "stages.compress.set.compress.steps.retrain.train.max_steps=2",
    ],
    "classify": [
        *("dataset.train=train.csv", "dataset.validation=valid.csv", *PRUNE),
        *("compress.check_reload=true", RESAMPLE),
    ],
    "sst2": PRUNE,
    "soft_labels": ["vars.labelled=train.csv", "vars.unlabelled=texts.csv", "vars.validation=valid.csv"],
    "answers": [
        "vars.train=instructions.jsonl",
        "vars.validation=valid.jsonl",
        "generate.max_new_tokens=24",
        "stages.teacher.set.train.learning_rate=0.01",
        "+stages.teacher.set.train.max_steps=12",
    ],
}
SMOKE["store"] = [argument for argument in SMOKE["answers"] if not argument.startswith("generate.")]
for recipe, data in (("regress", "pairs"), ("labels", "topics"), ("tag", "tags"), ("read", "questions")):
    files = [f"dataset.{split}={data}/{split}.jsonl" for split in ("train", "validation")]
    SMOKE[recipe] = [*files, *PRUNE, RESAMPLE]
T5 = "stages.teacher.set.student"
SMOKE |= {
    "translate": [
        *("dataset.train=sources.jsonl", "dataset.validation=sources.jsonl", "task.max_new_tokens=4", "task.beams=2"),
        f"{T5}.config={{d_model: 16, d_kv: 8, d_ff: 32, num_layers: 3, num_decoder_layers: 3, num_heads: 2}}",
        f"{T5}.tokenizer.vocab_size=300",
        RESAMPLE,
    ],
    "summarise": ["dataset.train=sources.jsonl", "dataset.validation=sources.jsonl", "task.max_new_tokens=4"],
    "chat": [
        *("dataset.train=chats.jsonl", "dataset.validation=chats.jsonl"),
        *("task.chat_template=plain", "task.max_length=256", "student.layers=2"),
    ],
    "masked": ["dataset.train=train.csv", "dataset.validation=valid.csv", RESAMPLE],
    "distilbert": ["dataset.train=train.csv", "dataset.validation=valid.csv"],
    "tinybert": [
        *("dataset.train=train.csv", "dataset.validation=valid.csv"),
        "vars.student={num_hidden_layers: 2, hidden_size: 8, intermediate_size: 16}",
    ],
    "minilmv2": [
        *("dataset.train=train.csv", "dataset.validation=valid.csv"),
        *("vars.texts=texts.csv", "vars.heads=4"),
    ],
}
FEW = ["task.max_new_tokens=4", "generate.max_new_tokens=4", "generate/filters=none"]
SMOKE |= {
    "finetune": ["dataset.train=train.csv", "dataset.validation=valid.csv"],
    "augment": ["vars.train=train.csv", "vars.validation=valid.csv", "vars.variants=1"],
    "eighth": ["vars.train=train.csv", "vars.validation=valid.csv", "vars.variants=1"],
    "language": ["dataset.train=texts.csv", "dataset.validation=valid.csv", "student.layers=2"],
    "minitron": [
        *("dataset.train=texts.csv", "dataset.validation=valid.csv"),
        *("vars.layers=3", "vars.ffn=0.5", "vars.group=8"),
    ],
    "server": [
        *("vars.prompts=instructions.jsonl", "vars.validation=valid.jsonl"),
        *("vars.model=large", "vars.url=${oc.env:FAKE_SERVER}"),
    ],
    "translate_sequences": [
        *("vars.train=sources.jsonl", "vars.validation=sources.jsonl", *FEW),
        *(argument for argument in SMOKE["translate"] if argument.startswith(T5)),
    ],
    "summarise_sequences": ["vars.train=sources.jsonl", "vars.validation=sources.jsonl", *FEW],
}
HEADLESS = {"tinybert": "intermediate", "minilmv2": "encoder"}  # stages whose loss teaches no head
TAUGHT: dict[str, dict[str, str | None]] = {  # stage → its teacher, where it is not that `distilled` has one
    "finetune": {},
    "minitron": {},
    "minilmv2": {"encoder": "google-bert/bert-base-uncased", "distilled": None},
    "translate_sequences": {"distilled": None},
    "summarise_sequences": {"distilled": None},
    "server": {"distilled": None},
}
STDLIB = Path(sysconfig.get_paths()["stdlib"])
KINDS = {  # of models; others classify texts
    "quickstart": transformers.AutoModelForCausalLM,
    "answers": transformers.AutoModelForCausalLM,
    "store": transformers.AutoModelForCausalLM,
    "translate": transformers.AutoModelForSeq2SeqLM,
    "summarise": transformers.AutoModelForSeq2SeqLM,
    "chat": transformers.AutoModelForCausalLM,
    "language": transformers.AutoModelForCausalLM,
    "minitron": transformers.AutoModelForCausalLM,
    "server": transformers.AutoModelForCausalLM,
    "translate_sequences": transformers.AutoModelForSeq2SeqLM,
    "summarise_sequences": transformers.AutoModelForSeq2SeqLM,
    "masked": transformers.AutoModelForMaskedLM,
    "tag": transformers.AutoModelForTokenClassification,
    "read": transformers.AutoModelForQuestionAnswering,
}


def go(recipe: str, *more: str) -> Outcome:
    return distillkit("run", recipe, *SHORT, *SMOKE[recipe], *more)


def written(folder: Path) -> dict[str, int]:
    """When each file of the stages was written."""
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def rewritten(folder: Path, before: dict[str, int]) -> set[str]:
    """The stages with a file that is new or was written again."""
    return {name.split("/")[0] for name, time in written(folder).items() if before.get(name) != time and "/" in name}


def skipped(result: Outcome) -> list[str]:
    lines = [line for line in result.out.splitlines() if line.endswith("finished, skipped")]
    return [line.split()[1] for line in lines]


def stages_of(recipe: str) -> list[str]:
    return list(yaml.safe_load(recipe_files()[recipe].read_text(encoding="utf-8"))["stages"])


def test_every_recipe_is_tried() -> None:
    assert set(SMOKE) == set(recipe_files())


@pytest.mark.parametrize("recipe", SMOKE)
def test_the_header_names_the_command(recipe: str) -> None:
    header = recipe_files()[recipe].read_text(encoding="utf-8").splitlines()
    assert header[1].startswith(f"# distillkit run {recipe}")


@pytest.fixture(scope="module", autouse=True)
def short_sources() -> Iterator[None]:
    """Leave only short files of the standard library."""
    few = [path for path in stdlib.find_sources(STDLIB) if (STDLIB / path).stat().st_size < 4000]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stdlib, "find_sources", lambda root: few)
        yield


@pytest.mark.parametrize("recipe", SMOKE)
def test_runs_from_end_to_end_and_is_then_finished(recipe: str, desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = go(recipe)
    assert (first.code, first.err) == (0, "")
    folder = desk / "outputs" / recipe
    stages = stages_of(recipe)
    assert list(read_report(folder)["run"]["stages"]) == stages
    text = (folder / "report.md").read_text(encoding="utf-8")
    assert text.startswith(f"# {recipe}\n")
    assert "by step" in (folder / "report.html").read_text(encoding="utf-8")  # the training curves of its stages
    for name in yaml.safe_load(recipe_files()[recipe].read_text())["stages"]["eval"]["set"]["evaluate"]["models"]:
        if recipe == "quickstart" or name != "int8":
            assert f"| {name} |" in text
    check_models(recipe, folder)

    def nothing_left_to_do(*arguments: object) -> None:
        raise AssertionError(f"started again: {arguments}")

    monkeypatch.setattr(run, "start", nothing_left_to_do)
    before = written(folder)
    second = go(recipe)
    assert (second.code, second.err) == (0, "")
    assert skipped(second) == stages
    assert rewritten(folder, before) == set()


def check_models(recipe: str, folder: Path) -> None:
    """What was trained loads in plain transformers and says what it is."""
    kind = KINDS.get(recipe, transformers.AutoModelForSequenceClassification)
    reports = read_report(folder)["run"]["stages"]
    trained = list(folder.glob("*/model"))
    assert trained
    retrained = "distilled" if recipe == "minitron" else "retrain"
    for path in [*trained, *folder.glob(f"compress/compressed/{retrained}")]:
        _, info = kind.from_pretrained(path, output_loading_info=True)
        assert not any(info.values()), info
        assert len(transformers.AutoTokenizer.from_pretrained(path)) > 5
    for path in trained:
        report = reports[path.parent.name]
        card = (path / "README.md").read_text(encoding="utf-8")
        assert f"- **Teacher**: {report['teacher'] or 'none'}\n" in card
        assert f"- **Data**: {report['dataset']}\n" in card
        assert all(f"{name}: {loss}" in card for name, loss in report["loss"].items())
        for name, value in report["metrics"].items():
            assert f"| {name} | {value:.4f} |" in card
        assert bool(report["metrics"]) == (path.parent.name != HEADLESS.get(recipe))
    taught = TAUGHT.get(recipe, {"distilled": f"outputs/{recipe}/teacher/model"})
    assert {stage: reports[stage]["teacher"] for stage in taught} == taught
    assert ("teacher" in reports) == (recipe != "server")
    assert recipe == "server" or reports["teacher"]["teacher"] is None


@pytest.fixture(scope="module")
def original(desk: Path) -> Path:
    assert go("soft_labels", "overwrite=true").code == 0
    return shutil.copytree(desk / "outputs/soft_labels", desk / "original")


@pytest.fixture
def finished(desk: Path, original: Path) -> Path:
    """A finished run of `soft_labels`: teacher → label, alone, distilled → eval."""
    folder = desk / "outputs/soft_labels"
    shutil.rmtree(folder)
    return shutil.copytree(original, folder)


def test_another_setting_is_refused_and_named(finished: Path) -> None:
    before = written(finished)
    result = go("soft_labels", "train.weight_decay=0.5")
    assert result.code == 2
    assert result.err.count("\n") == 1
    assert "outputs/soft_labels/teacher holds another run (train.weight_decay: 0.01 -> 0.5)" in result.err
    assert "overwrite=true" in result.err
    assert written(finished) == before


@pytest.mark.parametrize(
    ("change", "again"),
    [
        ("+stages.alone.set.train.seed=1", {"alone", "eval"}),
        ("stages.label.set.dataset.train=valid.csv", {"label", "distilled", "eval"}),
        ("+stages.teacher.set.train.seed=1", {"teacher", "label", "distilled", "eval"}),
    ],
)
def test_overwriting_does_what_changed_and_what_follows_from_it(finished: Path, change: str, again: set[str]) -> None:
    before = written(finished)
    result = go("soft_labels", change, "overwrite=true")
    assert (result.code, result.err) == (0, "")
    assert rewritten(finished, before) == again
    assert set(skipped(result)) == set(stages_of("soft_labels")) - again


STOPPED = ["train.checkpoint_every=2", "compress.check_reload=false", "evaluate.resamples=0"]


@pytest.fixture(scope="module")
def whole(desk: Path) -> Path:
    assert go("classify", "name=whole", *STOPPED).code == 0
    return desk / "outputs/whole"


@pytest.mark.parametrize("stage", ["distilled", "compress"])
def test_a_stage_that_is_stopped_midway_goes_on(
    stage: str, desk: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, more = desk / "outputs/stopped", ["name=stopped", *STOPPED]
    shutil.rmtree(folder, ignore_errors=True)
    start, forward, seen = run.start, Objective.forward, []

    def mark(command: str, config: object) -> None:
        seen.clear()
        start(command, config)

    def stop(self: Objective, *arguments: object) -> object:
        seen.append(1)
        if len(seen) == 4 and (folder / f"{stage}/{'train' if stage == 'distilled' else stage}.yaml").exists():
            raise KeyboardInterrupt
        return forward(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(run, "start", mark)
        patch.setattr(Objective, "forward", stop)
        assert go("classify", *more).code == 130
    before = written(folder)
    again = go("classify", *more)
    assert (again.code, again.err) == (0, "")
    stages = stages_of("classify")
    assert skipped(again) == stages[: stages.index(stage)]
    assert ("resuming from outputs/stopped/distilled/checkpoints/step-000002" in again.out) == (stage == "distilled")
    assert rewritten(folder, before) == set(stages[stages.index(stage) :])
    for model in ("distilled/model", "compress/compressed/retrain"):
        expected, found = (run / model / "model.safetensors" for run in (whole, folder))
        assert found.read_bytes() == expected.read_bytes()
