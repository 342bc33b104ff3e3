"""Ways to fine-tune, from the command line: what they change, what they leave alone, and what they refuse."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from distillkit.reporting.files import read_report
from tests.terminal import Outcome, distillkit
from tests.tiny import bert, classifier, data_files, events, language_model, save

DATA = ["dataset.train=data/train.jsonl", "dataset.validation=data/validation.jsonl", "task.max_length=32"]
SHORT = ["train.max_steps=4", "train.batch_size=8", "train.log_every=1", "train.evaluate_every=1"]
TRAIN = ["train", *DATA, *SHORT, "train.learning_rate=0.01", "student.path=base"]
COMPRESS = [
    "compress",
    *DATA,
    *SHORT,
    "compress=prune",
    "compress.model=trained",
    "evaluate.speed=false",
    "evaluate.resamples=0",
]
COMPRESS += ["teacher=live", "teacher.path=trained", "loss=kd"]
TEXT = ["task=causal_lm", "dataset.columns.label=null", "student.path=writer"]


@pytest.fixture(scope="module", autouse=True)
def kit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working directory: a pretrained model without a head, a trained one, a language model, and data."""
    folder = tmp_path_factory.mktemp("kit")
    save(classifier(), folder / "trained")
    save(language_model(), folder / "writer")
    headless = classifier()
    headless.model = bert().bert
    save(headless, folder / "base")
    data_files(folder / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in ("RANK", "LOCAL_RANK", "DISTILLKIT_TRUST"):
            patch.delenv(name, raising=False)
        yield folder


def run(*argv: str) -> Outcome:
    result = distillkit(*argv)
    assert (result.code, result.err) == (0, "")
    return result


def changed(folder: str) -> set[str]:
    """Return the names of the base model's weights that are not what they were."""
    after = load_file(Path(folder, "model/model.safetensors"))
    before = {f"bert.{name}": tensor for name, tensor in load_file("base/model.safetensors").items()}
    assert after.keys() - before.keys() == {"classifier.weight", "classifier.bias"}
    return {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}


def test_freezing_by_layers_and_by_names():
    run(*TRAIN, "output_dir=layers", "train.freeze=1")
    assert {name.split(".")[1] for name in changed("layers")} == {"encoder", "pooler"}
    assert not any(".layer.0." in name for name in changed("layers"))
    run(*TRAIN, "output_dir=names", "train.freeze=[0,'*.attention','bert.pooler']")
    left = {name for name in load_file("base/model.safetensors") if ".attention." not in name}
    assert changed("names") == {f"bert.{name}" for name in left if name.startswith("encoder")}


def test_the_presets_train_and_their_report_says_how_much():
    run(*TRAIN, "output_dir=gradual", "train=gradual", "train.keep_best=false", "train.head_learning_rate=0.1")
    report = read_report(Path("gradual"))["train"]
    assert (report["steps"], report["stopped_early"]) == (4, False)
    assert report["trained_parameters"] == report["parameters"]
    result = run(*TRAIN, "output_dir=lora", "train=lora", "train.lora.rank=2")
    report = read_report(Path("lora"))["train"]
    assert 0 < report["trained_parameters"] < 0.25 * report["parameters"]
    assert f"trained of it: {report['trained_parameters'] / 1e6:.2f} M parameters" in result.out


def test_what_lora_exports_is_a_plain_model_with_an_adapter_beside_it_on_request():
    run(*TRAIN, "output_dir=plain", "train=lora", "train.lora.rank=2")
    assert not Path("plain/adapter").exists()
    run(*TRAIN, "output_dir=kept", "train=lora", "train.lora.rank=2", "train.lora.keep_adapter=true")
    assert Path("kept/model/model.safetensors").read_bytes() == Path("plain/model/model.safetensors").read_bytes()
    model, info = AutoModelForSequenceClassification.from_pretrained("kept/model", output_loading_info=True)
    assert not any(info.values())
    base = AutoModelForSequenceClassification.from_pretrained("base")
    adapted = PeftModel.from_pretrained(base, "kept/adapter").eval()
    tokens = torch.arange(5, 15).view(2, 5)
    torch.testing.assert_close(adapted(tokens).logits, model.eval()(tokens).logits, rtol=1e-5, atol=1e-6)


def test_a_teacher_and_a_student_that_are_a_language_model_take_lora():
    run(*TRAIN, *TEXT, "output_dir=writing-teacher", "train=lora")
    teacher = ["teacher=live", "teacher.path=writing-teacher/model", "loss=kd", "student=from_teacher"]
    run(*TRAIN[:-1], *TEXT[:2], *teacher, "student.layers=1", "output_dir=writing-student", "train=lora")
    weights = load_file("writing-student/model/model.safetensors")
    given = load_file("writing-teacher/model/model.safetensors")
    same = {name for name in weights if torch.equal(weights[name], given[name])}
    assert same == {name for name in weights if "proj" not in name}


def test_early_stopping_says_so():
    result = run(*TRAIN, "output_dir=stopped", "train.patience=1", "train.min_delta=10", "train.evaluate_every=1")
    report = read_report(Path("stopped"))["train"]
    assert (report["steps"], report["stopped_early"]) == (2, True)
    assert "stopped early: no better accuracy in 1 evaluations" in result.out
    assert len([line for line in events(Path("stopped")) if line["event"] == "evaluate"]) == 2
    assert "student: stopped/model" in result.out


def test_pruned_weights_are_retrained_in_full_where_the_rest_takes_lora():
    run(
        *COMPRESS,
        "output_dir=small",
        "compress.check_reload=false",
        "train=lora",
        "+compress.steps.retrain.train.lora.rank=null",
    )
    zeros = [int((tensor == 0).sum()) for tensor in load_file("small/compressed/retrain/model.safetensors").values()]
    assert sum(zeros) > 1000


REFUSED = {
    "too deep": ([*TRAIN, "train.freeze=3"], "train.freeze: the model has 2 layers, got 3"),
    "no such name": ([*TRAIN, "train.freeze='*.atention'"], "train.freeze: nothing is named '*.atention'; there are"),
    "everything": ([*TRAIN, "train.freeze='*'"], "train.freeze: nothing is left to train; freeze less"),
    "no number": ([*TRAIN, "train.freeze=-1"], "train.freeze: must be a number of layers from 0, name patterns, or a"),
    "too long": ([*TRAIN, "train.unfreeze=4"], "train.unfreeze: must be below the run's 4 steps, got 4"),
    "decay": ([*TRAIN, "train.layer_decay=2"], "train.layer_decay: must be in (0, 1], got 2.0"),
    "rank": ([*TRAIN, "train.lora.rank=0"], "train.lora.rank: must be above 0 or null, got 0"),
    "target": (
        [*TRAIN, "train.lora.rank=2", "train.lora.targets=['*.q_proj']"],
        "train.lora.targets: nothing is named '*.q_proj'; there are, for example, bert.encoder",
    ),
    "key": ([*TRAIN, "train.lora.rnak=2"], "train.lora.rnak"),
    "no validation": (
        [*TRAIN, "train.patience=1", "dataset.validation=null"],
        "train.patience: there is nothing to evaluate: no validation split",
    ),
    "masks": (
        [*COMPRESS, "train=lora"],
        "compress.steps.retrain: train.lora.rank: pruned weights would come back when adapters are merged",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_work_costs_one_line(name):
    argv, message = REFUSED[name]
    result = distillkit(*argv, "output_dir=refused")
    assert result.code == 2
    assert message in result.err
    assert result.err.count("\n") == 1
    assert argv[0] == "compress" or not Path("refused").exists()
