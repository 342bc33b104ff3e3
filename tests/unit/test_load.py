"""Loading models: from folders only whole, with a trained head and the data's classes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from distillkit.errors import UserError
from distillkit.models.live import LiveModel, whole_or_nothing
from distillkit.models.load import load_live, load_tokenizer
from distillkit.models.teachers import FrozenModel, LiveTeacher, RecordedTeacher
from distillkit.tasks.causal_lm import CausalLM
from distillkit.tasks.sequence_classification import SequenceClassification
from tests.tiny import LABELS, bert, classifier, language_model, llama, save, tokenizer

TASK = SequenceClassification(max_length=32)


def load(folder: Path, labels: list[str] | None = None, **arguments) -> LiveModel:
    return load_live(str(folder), TASK, "teacher.path", labels, **arguments)


@pytest.fixture
def folder(tmp_path) -> Path:
    return save(classifier(), tmp_path / "model")


def test_a_saved_model_loads_with_its_labels(folder):
    live = load(folder, LABELS)
    assert live.labels == LABELS
    for name, tensor in classifier().model.state_dict().items():
        assert torch.equal(live.model.state_dict()[name], tensor)
    assert load(folder).labels == LABELS
    assert load(folder, dtype="bfloat16").model.dtype == torch.bfloat16


def test_tied_weights_are_counted_once():
    model = llama(layers=1)
    own = LiveModel(model, tokenizer(), CausalLM(max_length=32)).count_parameters()
    assert own == sum(parameter.numel() for parameter in model.parameters())
    model.config.tie_word_embeddings = True
    tied = type(model)(model.config)
    live = LiveModel(tied, tokenizer(), CausalLM(max_length=32))
    assert live.count_parameters() == own - 320 * 16
    with torch.no_grad():
        tied.lm_head.weight[:3] = 0
    assert live.count_nonzeros() == live.count_parameters() - 3 * 16


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        (["good", "bad"], "in another order: bad, good; the data has good, bad"),
        (["no", "yes"], "than the data: bad, good"),
        (["bad", "fair", "good"], "than the data"),
    ],
)
def test_a_teacher_of_other_classes_is_refused(folder, labels, problem):
    with pytest.raises(UserError, match=r"teacher\.path") as caught:
        LiveTeacher(str(folder)).load(TASK, labels)
    assert problem in str(caught.value)
    assert "dataset.labels=[bad,good]" in str(caught.value)


def test_a_teacher_without_named_classes_takes_those_of_the_data(tmp_path):
    model = bert()
    model.config.id2label, model.config.label2id = {0: "LABEL_0", 1: "LABEL_1"}, {"LABEL_0": 0, "LABEL_1": 1}
    folder = save(LiveModel(model, tokenizer(), TASK), tmp_path / "model")
    assert LiveTeacher(str(folder)).load(TASK, LABELS).labels == LABELS
    with pytest.raises(UserError, match="other classes"):
        LiveTeacher(str(folder)).load(TASK, ["a", "b", "c"])


def test_a_teacher_without_a_trained_head_is_refused(tmp_path):
    folder = save(language_model(), tmp_path / "lm")
    with pytest.raises(UserError, match=r"no trained head for sequence_classification \(not in its weights: score"):
        LiveTeacher(str(folder)).load(TASK, LABELS)
    folder = save(classifier(), tmp_path / "body")
    classifier().model.bert.save_pretrained(folder)
    with pytest.raises(UserError, match="no trained head"):
        LiveTeacher(str(folder)).load(TASK, LABELS)


def test_an_untrained_head_is_new_where_that_is_wanted(tmp_path):
    folder = save(classifier(), tmp_path / "body")
    classifier().model.bert.save_pretrained(folder)
    assert load(folder, ["a", "b", "c"], trained=False).labels == ["a", "b", "c"]


@pytest.mark.parametrize("path", ["./none", "/none/such", "~/none/such", "a/b/c"])
def test_a_folder_that_is_not_there(path):
    for attempt in (lambda: load_live(path, TASK, "student.path"), lambda: load_tokenizer(path, "student.path")):
        with pytest.raises(UserError, match=r"student\.path: no such model folder"):
            attempt()


def test_the_home_folder_may_be_written_as_a_tilde(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert load_live("~/model", TASK, "teacher.path").labels == LABELS


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_folder_that_lacks_a_part(folder, missing):
    (folder / missing).unlink()
    if missing == "tokenizer.json":
        (folder / "tokenizer_config.json").unlink()
    with pytest.raises(UserError, match=r"teacher\.path") as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def test_damaged_weights_are_refused(folder):
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"teacher\.path: cannot load"):
        load(folder)


def test_pickled_weights_are_not_read(folder):
    torch.save(classifier().model.state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"teacher\.path: cannot load"):
        load(folder)


def test_a_frozen_teacher_has_neither_gradients_nor_dropout():
    live = classifier()
    live.model.config.hidden_dropout_prob = 0.5
    live.train()
    frozen = FrozenModel(live)
    assert not any(module.training for module in frozen.live.modules())
    assert not any(parameter.requires_grad for parameter in live.parameters())


def test_teachers_check_their_arguments():
    with pytest.raises(UserError, match=r"teacher\.dtype: unknown dtype 'float8'"):
        LiveTeacher("folder", dtype="float8")
    with pytest.raises(UserError, match="no recorded soft labels"):
        RecordedTeacher().load(CausalLM(max_length=32), None)


def test_model_and_tokenizer_agree_on_padding():
    made = tokenizer()
    made.pad_token = None
    model = llama(layers=1)
    model.config.pad_token_id = None
    live = LiveModel(model, made, CausalLM(max_length=32))
    assert live.tokenizer.pad_token_id == live.tokenizer.eos_token_id == model.config.pad_token_id
    made.pad_token = made.eos_token = None
    model.config.pad_token_id = None
    with pytest.raises(UserError, match="neither a padding nor an end"):
        LiveModel(model, made, CausalLM(max_length=32))


def test_saving_replaces_a_folder_as_a_whole_or_not_at_all(tmp_path):
    folder = tmp_path / "model"
    classifier().save(folder, card="# first")
    assert (folder / "README.md").read_text() == "# first"
    classifier().save(folder)
    assert not (folder / "README.md").exists()
    assert json.loads((folder / "config.json").read_text())["id2label"] == {"0": "bad", "1": "good"}

    def fail(beside: Path) -> None:
        (beside / "half").write_text("x")
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        whole_or_nothing(folder, fail)
    assert (folder / "model.safetensors").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
