"""Students: chosen layers of a teacher, smaller configs, pretrained models; and what is saved loads elsewhere."""

from __future__ import annotations

import copy

import pytest
import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from distillkit.data.rows import Rows
from distillkit.errors import UserError
from distillkit.models.live import LiveModel
from distillkit.models.students import FromConfig, FromTeacher, Pretrained, copy_layers, spread
from distillkit.models.tokenizers import ByteLevelBPE
from distillkit.tasks.causal_lm import CausalLM
from distillkit.tasks.sequence_classification import SequenceClassification
from tests.tiny import GOOD, LABELS, bert, classifier, language_model, llama, save, tokenizer

NAMES = {"id2label": dict(enumerate(LABELS)), "label2id": {name: index for index, name in enumerate(LABELS)}}
SIZES = {"vocab_size": 320, "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "pad_token_id": 1}
DECODER = {
    **SIZES,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "intermediate_size": 24,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
LAYERS = {"gpt2": "transformer.h", "bert": "bert.encoder.layer", "distilbert": "distilbert.transformer.layer"}
LAYERS |= {"roberta": "roberta.encoder.layer"}
NO_ROWS = Rows("none", {"train": Dataset.from_dict({"text": GOOD})})


def gpt2():
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=320, n_embd=16, n_layer=4, n_head=2, bos_token_id=0, eos_token_id=0, pad_token_id=1)
    )


def gemma2():
    return Gemma2ForCausalLM(Gemma2Config(**DECODER, final_logit_softcapping=2.0, sliding_window=4))


def qwen3():
    return Qwen3ForCausalLM(Qwen3Config(**DECODER, use_sliding_window=True, sliding_window=3, max_window_layers=2))


def distilbert():
    return DistilBertForSequenceClassification(
        DistilBertConfig(vocab_size=320, dim=16, n_layers=4, n_heads=2, hidden_dim=24, pad_token_id=1, **NAMES)
    )


def roberta():
    return RobertaForSequenceClassification(RobertaConfig(**SIZES, intermediate_size=24, **NAMES))


TEACHERS = {
    "llama": lambda: llama(layers=4),
    "gpt2": gpt2,
    "gemma2": gemma2,
    "qwen3": qwen3,
    "bert": lambda: bert(layers=4),
    "distilbert": distilbert,
    "roberta": roberta,
}


def randomised(model):
    """Make every weight matter, norms and biases too."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@pytest.fixture(params=TEACHERS)
def teacher(request) -> LiveModel:
    model = randomised(TEACHERS[request.param]())
    has_classes = "SequenceClassification" in type(model).__name__
    return LiveModel(
        model, tokenizer(), SequenceClassification(max_length=32) if has_classes else CausalLM(max_length=32)
    ).eval()


def logits(model, length: int = 11) -> torch.Tensor:
    ids = torch.randint(2, 320, (3, length), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids)).logits


def student_of(teacher: LiveModel, layers: int | list[int]) -> LiveModel:
    return FromTeacher(layers).build(teacher.task, None, NO_ROWS, teacher)


def reload(live: LiveModel, folder):
    auto = AutoModelForSequenceClassification if live.task.has_classes else AutoModelForCausalLM
    model, info = auto.from_pretrained(save(live, folder), output_loading_info=True)
    assert not any(info[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model


def test_keeping_all_layers_gives_the_teachers_logits(teacher):
    student = student_of(teacher, 4)
    torch.testing.assert_close(logits(student.model), logits(teacher.model), rtol=0, atol=1e-6)
    assert {name: p.requires_grad for name, p in student.model.named_parameters()}
    assert student.model is not teacher.model


def test_chosen_layers_are_the_teachers_and_the_rest_is_copied(teacher):
    student = student_of(teacher, [0, 3])
    kind = teacher.model.config.model_type
    stack = LAYERS.get(kind, "model.layers")
    own, theirs = student.model.state_dict(), teacher.model.state_dict()
    for name, tensor in own.items():
        origin = name.replace(f"{stack}.1.", f"{stack}.3.")
        assert torch.equal(tensor, theirs[origin]), name
        assert tensor.data_ptr() != theirs[origin].data_ptr()
    assert any(f"{stack}.1." in name for name in own)
    assert not any(f"{stack}.2." in name for name in own)
    config = student.model.config
    assert config.num_hidden_layers == 2
    assert teacher.model.config.num_hidden_layers == 4
    if kind in ("gemma2", "qwen3"):
        types = teacher.model.config.layer_types
        assert config.layer_types == [types[0], types[3]]
        assert len(set(config.layer_types)) == 2


def test_leaving_layers_out_is_skipping_them_in_the_teacher():
    """An oracle from elsewhere: the teacher itself with its middle layers made to pass their input on."""
    teacher = randomised(llama(layers=4))
    student = copy_layers(teacher, [0, 3])
    skipping = copy.deepcopy(teacher)
    for layer in (1, 2):
        for name, parameter in skipping.model.layers[layer].named_parameters():
            if "o_proj" in name or "down_proj" in name:
                parameter.data.zero_()
    torch.testing.assert_close(logits(student), logits(skipping), rtol=1e-5, atol=1e-6)


def test_a_student_loads_in_plain_transformers_and_says_the_same(teacher, tmp_path):
    student = student_of(teacher, 2)
    again = reload(student, tmp_path / "student")
    torch.testing.assert_close(logits(again), logits(student.model), rtol=0, atol=1e-6)
    assert again.config.num_hidden_layers == 2
    assert AutoTokenizer.from_pretrained(tmp_path / "student").get_vocab() == teacher.tokenizer.get_vocab()
    if teacher.task.has_classes:
        assert again.config.id2label == NAMES["id2label"]


def test_a_half_precision_teacher_gives_a_float32_student(tmp_path):
    teacher = language_model(layers=2)
    teacher.model.bfloat16()
    teacher.model.config.dtype = torch.bfloat16
    for student in (
        student_of(teacher, 1),
        FromConfig({"num_hidden_layers": 1}).build(CausalLM(max_length=32), None, NO_ROWS, teacher),
    ):
        assert {parameter.dtype for parameter in student.model.parameters()} == {torch.float32}
        assert reload(student, tmp_path / "student").dtype == torch.float32


def test_how_a_teacher_writes_text_is_copied(tmp_path):
    teacher = language_model()
    teacher.model.generation_config.temperature = 0.3
    teacher.model.generation_config.do_sample = True
    assert reload(student_of(teacher, 1), tmp_path / "s").generation_config.temperature == 0.3


@pytest.mark.parametrize(
    ("count", "depth", "expected"),
    [(1, 6, [0]), (2, 6, [0, 5]), (3, 6, [0, 2, 5]), (6, 12, [0, 2, 4, 7, 9, 11]), (4, 4, [0, 1, 2, 3])],
)
def test_layers_are_spread_from_first_to_last(count, depth, expected):
    assert spread(count, depth) == expected


def test_spread_layers_are_always_different():
    for depth in range(1, 40):
        for count in range(1, depth + 1):
            assert len(set(spread(count, depth))) == count


@pytest.mark.parametrize("layers", [0, -1, [], [1, 0], [0, 0], [-1, 0]])
def test_impossible_layers_are_refused_before_anything_is_loaded(layers):
    with pytest.raises(UserError, match=r"student\.layers"):
        FromTeacher(layers)


@pytest.mark.parametrize("layers", [3, [0, 2]])
def test_layers_that_the_teacher_has_not_are_refused(layers):
    with pytest.raises(UserError, match=r"no layer 2.*0 … 1"):
        student_of(classifier(layers=2), layers)


def test_layers_that_are_not_to_be_found_are_refused():
    model = llama(layers=2)
    model.model.layers = torch.nn.Sequential(*model.model.layers)
    with pytest.raises(UserError, match="cannot find the 2 layers"):
        copy_layers(model, [0])


@pytest.mark.parametrize("kind", TEACHERS)
def test_a_smaller_config_of_the_teacher(kind, tmp_path):
    model = TEACHERS[kind]()
    has_classes = "SequenceClassification" in type(model).__name__
    task = SequenceClassification(max_length=32) if has_classes else CausalLM(max_length=32)
    teacher = LiveModel(model, tokenizer(), task)
    student = FromConfig({"num_hidden_layers": 2}).build(task, LABELS if has_classes else None, NO_ROWS, teacher)
    assert type(student.model) is type(model)
    assert student.model.config.num_hidden_layers == 2
    assert student.model.config.vocab_size == 320
    again = reload(student, tmp_path / "student")
    torch.testing.assert_close(logits(again), logits(student.model), rtol=0, atol=1e-6)


def test_what_follows_from_other_settings_is_derived_anew():
    """A head's width and the key-value heads of the teacher must not stay when hidden size and heads shrink."""
    teacher = language_model()  # 2 heads of width 8
    narrow = FromConfig({"hidden_size": 8}).build(CausalLM(max_length=32), None, NO_ROWS, teacher).model
    assert narrow.model.layers[0].self_attn.q_proj.weight.shape == (8, 8)
    more = FromConfig({"num_attention_heads": 4}).build(CausalLM(max_length=32), None, NO_ROWS, teacher).model
    assert (more.config.num_key_value_heads, more.config.head_dim) == (4, 4)
    told = FromConfig({"hidden_size": 8, "head_dim": 8}).build(CausalLM(max_length=32), None, NO_ROWS, teacher).model
    assert told.model.layers[0].self_attn.q_proj.weight.shape == (16, 8)


def test_the_pattern_of_layers_fits_the_new_depth():
    teacher = LiveModel(gemma2(), tokenizer(), CausalLM(max_length=32))
    for depth in (2, 6):
        config = (
            FromConfig({"num_hidden_layers": depth}).build(CausalLM(max_length=32), None, NO_ROWS, teacher).model.config
        )
        assert config.layer_types == ["sliding_attention", "full_attention"] * (depth // 2)


@pytest.mark.parametrize(
    ("model_type", "config"),
    [
        ("llama", {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}),
        ("gpt2", {"hidden_size": 16, "n_layer": 1, "num_attention_heads": 2}),
        (
            "gemma2",
            {
                "hidden_size": 16,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "num_key_value_heads": 1,
                "head_dim": 8,
            },
        ),
    ],
)
def test_an_architecture_from_scratch_with_its_own_tokenizer(model_type, config, tmp_path):
    student = FromConfig(config, model_type, ByteLevelBPE(vocab_size=300)).build(
        CausalLM(max_length=32), None, NO_ROWS, None
    )
    settings = student.model.config
    assert settings.vocab_size == len(student.tokenizer)
    assert settings.pad_token_id == student.tokenizer.pad_token_id
    assert settings.eos_token_id == student.tokenizer.eos_token_id
    assert settings.hidden_size == 16
    assert reload(student, tmp_path / "student").config.hidden_size == 16


def test_a_classifier_from_scratch_knows_its_labels():
    config = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    labels = ["a", "b", "c"]
    student = FromConfig(config, "bert", ByteLevelBPE(300)).build(
        SequenceClassification(max_length=32), labels, NO_ROWS, None
    )
    assert student.labels == labels
    assert student.model.classifier.out_features == 3


def test_a_tokenizer_learns_from_prompts_and_answers():
    rows = Rows("x", {"train": Dataset.from_dict({"prompt": ["aaaa bbbb"] * 9, "completion": ["zqzqzq"] * 9})})
    config = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    student = FromConfig(config, "llama", ByteLevelBPE(270)).build(CausalLM(max_length=32), None, rows, None)
    assert len(student.tokenizer("zqzqzq")["input_ids"]) < 6


@pytest.mark.parametrize(
    ("model_type", "config", "problem"),
    [
        ("lama", {}, "unknown architecture 'lama'; did you mean 'llama'"),
        ("llama", {"hiden_size": 3}, "llama has no setting 'hiden_size'; did you mean 'hidden_size'"),
        ("llama", {"hidden_size": "wide"}, "no model can be made"),
        ("llama", {"hidden_size": 17}, "no model can be made"),
        ("bert", {"hidden_size": 17}, "no model can be made"),
        ("bert", {"hidden_act": "none such"}, "no model can be made"),
        ("llama", {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 1}, "below the tokenizer's 320"),
        ("gemma2", {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}, "no model can be made"),
    ],
)
def test_impossible_configs_are_refused_in_one_line(model_type, config, problem):
    teacher = language_model(layers=1)
    task = SequenceClassification(max_length=32) if model_type == "bert" else CausalLM(max_length=32)
    with pytest.raises(UserError, match="student") as caught:
        FromConfig(config, model_type).build(task, None, NO_ROWS, teacher)
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


def test_who_needs_a_teacher():
    assert FromTeacher(2).needs_teacher
    assert FromConfig({}).needs_teacher
    assert FromConfig({}, model_type="llama").needs_teacher
    assert not FromConfig({}, model_type="llama", tokenizer="folder").needs_teacher
    assert not Pretrained("folder").needs_teacher


def test_a_pretrained_body_gets_a_new_head_for_the_labels(tmp_path):
    folder = save(classifier(), tmp_path / "body")
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    model.bert.save_pretrained(folder)
    student = Pretrained(str(folder)).build(SequenceClassification(max_length=32), ["x", "y", "z"], NO_ROWS, None)
    assert student.labels == ["x", "y", "z"]
    assert torch.equal(student.model.bert.pooler.dense.weight, model.bert.pooler.dense.weight)
