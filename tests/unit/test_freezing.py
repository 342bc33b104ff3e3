"""Freezing and thawing: what stays as it is to the last bit, what it costs, and what a model's levels are."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    OPTConfig,
    OPTForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

from distillkit.errors import UserError
from distillkit.losses.hidden import HiddenMSE
from distillkit.losses.objective import Objective
from distillkit.models.anatomy import shape_of
from distillkit.models.levels import find_levels, head_names
from distillkit.models.live import LiveModel
from distillkit.models.teachers import FrozenModel
from distillkit.training.loop import fit
from tests.tiny import bert, classifier, encoded, language_model, llama, train, training

IDS = torch.arange(4, 12).view(1, -1)
SMALL: dict[str, Any] = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
PAIR = {"vocab_size": 64, "d_model": 16, "decoder_start_token_id": 2}
TEXT = {"input_ids": IDS}
PAIRS = {"input_ids": IDS, "decoder_input_ids": IDS}


class Runnable:
    """What `find_levels` asks of a live model, for architectures that no task here loads."""

    def __init__(self, model: Any, inputs: dict[str, torch.Tensor]) -> None:
        self.model, self.inputs = model, inputs

    def eval(self) -> Runnable:
        self.model.eval()
        return self

    def __call__(self, batch: object) -> object:
        return self.model(**self.inputs)


def deberta() -> Any:
    relative = {"relative_attention": True, "norm_rel_ebd": "layer_norm", "pos_att_type": ["c2p", "p2c"]}
    config = DebertaV2Config(**SMALL, **relative, intermediate_size=32, position_biased_input=False)
    return DebertaV2ForSequenceClassification(config)


def opt() -> Any:
    return OPTForCausalLM(OPTConfig(**SMALL, ffn_dim=32, word_embed_proj_dim=8))


def gpt2() -> Any:
    return GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=16, n_layer=2, n_head=2))


def vit() -> Any:
    return ViTForImageClassification(ViTConfig(**SMALL, intermediate_size=32, image_size=16, patch_size=8))


def t5() -> Any:
    return T5ForConditionalGeneration(
        T5Config(**PAIR, d_kv=8, d_ff=32, num_layers=2, num_decoder_layers=1, num_heads=2)
    )


def bart() -> Any:
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    return BartForConditionalGeneration(BartConfig(**PAIR, **heads, encoder_layers=2, decoder_layers=1))


LEVELS = {  # model, inputs, depth, modules below the layers, modules above them
    "bert": (bert, TEXT, 2, ["bert.embeddings"], ["bert.pooler", "classifier"]),
    "llama": (llama, TEXT, 2, ["model.embed_tokens"], ["model.norm", "lm_head"]),
    "gpt2": (gpt2, TEXT, 2, ["transformer.wte", "transformer.wpe"], ["transformer.ln_f"]),
    "opt": (
        opt,
        TEXT,
        2,
        ["model.decoder.embed_tokens", "model.decoder.embed_positions", "model.decoder.project_in"],
        ["model.decoder.final_layer_norm", "model.decoder.project_out"],
    ),
    "deberta": (
        deberta,
        TEXT,
        2,
        ["deberta.embeddings", "deberta.encoder.rel_embeddings", "deberta.encoder.LayerNorm"],
        ["pooler", "classifier"],
    ),
    "vit": (vit, {"pixel_values": torch.zeros(1, 3, 16, 16)}, 2, ["vit.embeddings"], ["vit.layernorm", "classifier"]),
    "t5": (t5, PAIRS, 3, ["shared"], ["decoder.final_layer_norm"]),
    "bart": (
        bart,
        PAIRS,
        3,
        ["model.shared", "model.encoder.embed_positions", "model.encoder.layernorm_embedding"],
        [],
    ),
}


def inside(name: str, modules: list[str]) -> bool:
    return any(name.startswith(f"{module}.") for module in modules)


@pytest.mark.parametrize("name", LEVELS)
def test_what_runs_before_the_first_layer_is_the_embeddings(name):
    make, inputs, depth, below, above = LEVELS[name]
    model = make()
    levels = find_levels(Runnable(model, inputs), None, "train.freeze")
    assert levels.depth == depth
    found = {parameter: levels.of(parameter) for parameter, _ in model.named_parameters()}
    for parameter, level in found.items():
        assert (level == 0) == inside(parameter, below), parameter
        assert (level == depth + 1) == inside(parameter, above), parameter
    assert set(found.values()) == set(range(depth + 2 if above else depth + 1))


def test_an_encoders_last_norm_goes_with_its_top_layer():
    levels = find_levels(Runnable(t5(), PAIRS), None, "train.freeze")
    assert levels.of("encoder.block.1.layer.0.SelfAttention.q.weight") == 2
    assert levels.of("encoder.final_layer_norm.weight") == 2
    assert levels.of("decoder.block.0.layer.0.SelfAttention.q.weight") == 3


def test_the_head_is_what_lies_outside_the_pretrained_model():
    assert head_names(bert()) == {"classifier.weight", "classifier.bias"}
    assert head_names(llama()) == {"lm_head.weight"}
    assert head_names(gpt2()) == set()  # its output embeddings are the input embeddings


def weights(live: LiveModel) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in live.model.named_parameters()}


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


BERT = {name for name, _ in bert().named_parameters()}
LLAMA = {name for name, _ in llama().named_parameters()}
LOW_BERT = {name for name in BERT if inside(name, ["bert.embeddings", "bert.encoder.layer.0"])}
FREEZE = [
    (classifier, 0, {name for name in BERT if inside(name, ["bert.embeddings"])}),
    (classifier, 1, LOW_BERT),
    (classifier, 2, {name for name in BERT if inside(name, ["bert.embeddings", "bert.encoder"])}),
    (classifier, "*.layer.1", {name for name in BERT if inside(name, ["bert.encoder.layer.1"])}),
    (classifier, ["*.bias", 0], {name for name in BERT if name.endswith("bias") or inside(name, ["bert.embeddings"])}),
    (classifier, ["bert"], {name for name in BERT if name.startswith("bert.")}),
    (language_model, 1, {name for name in LLAMA if inside(name, ["model.embed_tokens", "model.layers.0"])}),
    (language_model, "*_proj", {name for name in LLAMA if "_proj." in name}),
]


@pytest.mark.parametrize(("kind", "freeze", "frozen"), FREEZE, ids=[f"{k.__name__}-{f}" for k, f, _ in FREEZE])
def test_the_frozen_stays_to_the_last_bit_and_the_rest_learns(tmp_path, kind, freeze, frozen):
    student = kind()
    before = weights(student)
    data = encoded(tmp_path / "data", student.task)
    result = train(tmp_path, student, kind(seed=7), data, max_steps=3, evaluate_every=3, freeze=freeze)
    assert changed(before, weights(student)) == set(before) - frozen
    assert result.trained_parameters == sum(before[name].numel() for name in set(before) - frozen)
    assert all(parameter.requires_grad for parameter in student.parameters())  # for another training


def test_a_tied_weight_is_frozen_by_either_of_its_names(tmp_path):
    student = language_model()
    student.model.config.tie_word_embeddings = True
    student.model.tie_weights()
    before = weights(student)
    data = encoded(tmp_path / "data", student.task)
    train(tmp_path, student, language_model(seed=7), data, max_steps=2, evaluate_every=2, freeze="lm_head")
    assert set(before) - changed(before, weights(student)) == {"model.embed_tokens.weight"}


def test_frozen_embeddings_and_layers_cost_no_backward_pass(tmp_path):
    student = classifier(layers=3)
    kept: dict[int, set[bool]] = {}

    def watch(index: int):
        def hook(layer, _inputs, output) -> None:
            if layer.training:
                kept.setdefault(index, set()).add(output.requires_grad)

        return hook

    for index, layer in enumerate(student.model.bert.encoder.layer):
        layer.register_forward_hook(watch(index))
    data = encoded(tmp_path / "data", student.task)
    train(tmp_path, student, classifier(seed=7), data, max_steps=2, evaluate_every=2, freeze=2)
    assert kept == {0: {False}, 1: {False}, 2: {True}}  # autograd keeps nothing of the first two


def gradual(tmp_path, student: LiveModel, **settings) -> list[set[str]]:
    """Return what changed in each step."""
    data = encoded(tmp_path / "data", student.task)
    run = training(tmp_path, student, classifier(seed=7), data, evaluate_every=99, **settings)
    seen = [weights(student)]
    run.after_step = lambda: seen.append(weights(student))
    fit(run)
    return [changed(*pair) for pair in pairwise(seen)]


def test_layers_thaw_from_the_top_down(tmp_path):
    """Four levels in the first six of eight steps: the head at once, then a level every second step."""
    moved = gradual(tmp_path, classifier(), max_steps=8, unfreeze=0.75)
    head = {name for name in BERT if inside(name, ["bert.pooler", "classifier"])}
    top, low = ({name for name in BERT if inside(name, [f"bert.encoder.layer.{n}"])} for n in (1, 0))
    keys = {name for name in BERT if name.endswith("key.bias")}  # softmax does not see it: rounding decides
    expected = [head, head, head | top, head | top, head | top | low, head | top | low, BERT, BERT]
    assert [step - keys for step in moved] == [step - keys for step in expected]


def test_layers_thaw_within_a_number_of_steps_and_the_frozen_never(tmp_path):
    moved = gradual(tmp_path, classifier(), max_steps=5, unfreeze=2, freeze=[0, "*.pooler"])
    frozen = {name for name in BERT if inside(name, ["bert.embeddings", "bert.pooler"])}
    assert moved[0] == {"classifier.weight", "classifier.bias"}
    assert "bert.encoder.layer.1.output.dense.weight" in moved[1]
    assert "bert.encoder.layer.0.output.dense.weight" not in moved[1]
    assert "bert.encoder.layer.0.output.dense.weight" in moved[2]
    assert not set().union(*moved) & frozen


def test_what_has_not_thawed_has_no_memory_of_earlier_gradients(tmp_path):
    """At its first step a thawed weight moves by the whole learning rate, as Adam's first step does."""
    student = classifier(layers=1)
    data = encoded(tmp_path / "data", student.task)
    settings = {"max_steps": 5, "schedule": "constant", "warmup": 0, "weight_decay": 0.0, "unfreeze": 3}
    run = training(tmp_path, student, classifier(seed=7), data, evaluate_every=99, **settings)
    seen = [weights(student)]
    run.after_step = lambda: seen.append(weights(student))
    fit(run)
    name = "bert.encoder.layer.0.output.dense.weight"  # thaws in the third step (levels at 0, 2 and 3)
    assert torch.equal(seen[2][name], seen[0][name])
    torch.testing.assert_close((seen[3][name] - seen[2][name]).abs().max(), torch.tensor(0.01), rtol=1e-3, atol=0)


REFUSED = [
    ({"freeze": 3}, "train.freeze: the model has 2 layers, got 3"),
    ({"freeze": "*.atention"}, r"train.freeze: nothing is named '\*\.atention'; there are, for example, .*classifier"),
    ({"freeze": "*"}, "train.freeze: nothing is left to train; freeze less"),
    ({"unfreeze": 4}, "train.unfreeze: must be below the run's 4 steps, got 4"),
    ({"freeze": "classifier", "head_learning_rate": 1.0}, "train.head_learning_rate: .* is not trained: it is frozen"),
    ({"patience": 1}, "train.patience: there is nothing to evaluate"),
]


@pytest.mark.parametrize(("settings", "message"), REFUSED)
def test_what_does_not_fit_the_student_is_refused_and_changes_nothing(tmp_path, settings, message):
    student = classifier()
    data = encoded(tmp_path / "data", student.task)
    run = training(tmp_path, student, classifier(seed=7), data, max_steps=4, **settings)
    run.evaluate = None
    with pytest.raises(UserError, match=message):
        fit(run)
    assert all(parameter.requires_grad for parameter in student.parameters())
    assert not run.records.path.exists()


def test_a_tied_head_has_no_learning_rate_of_its_own(tmp_path):
    student = language_model()
    student.model.config.tie_word_embeddings = True
    student.model.tie_weights()
    data = encoded(tmp_path / "data", student.task)
    run = training(tmp_path, student, language_model(seed=7), data, max_steps=1, head_learning_rate=1.0)
    with pytest.raises(UserError, match=r"train\.head_learning_rate: .* has none of its own; set it to null"):
        fit(run)


@pytest.mark.parametrize(("key", "value"), [("freeze", 2), ("unfreeze", 2.0)])
def test_a_loss_on_frozen_layers_alone_is_refused(tmp_path, key, value):
    student, teacher = classifier(), classifier(seed=7)
    run = training(tmp_path, student, teacher, encoded(tmp_path / "data", student.task), max_steps=4, **{key: value})
    run.objective = Objective({"hidden": {"weight": 1.0, "loss": HiddenMSE(layers="uniform")}})
    run.objective.bind(shape_of(student.model.config), shape_of(teacher.model.config))
    run.teacher, run.evaluate = FrozenModel(teacher, run.objective.wanted_of_teacher), None
    with pytest.raises(UserError, match=rf"train\.{key}: the loss depends on nothing that is trained"):
        fit(run)
    assert not run.records.path.exists()
