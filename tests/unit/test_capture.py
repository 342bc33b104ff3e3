"""What is captured inside a model is what transformers itself reports, and nothing beyond it is computed."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5EncoderModel,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from distillkit.errors import UserError
from distillkit.models.anatomy import layer_stack, shape_of
from distillkit.models.capture import capturing, check_features
from distillkit.models.teachers import FrozenModel
from distillkit.signals import Batch, HeadLogits, Wanted
from tests.tiny import classifier, language_model

BASE = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4, "pad_token_id": 0}
WIDE = BASE | {"intermediate_size": 24}
MODELS = {
    "bert": lambda: BertForSequenceClassification(BertConfig(**WIDE)),
    "distilbert": lambda: DistilBertForSequenceClassification(
        DistilBertConfig(vocab_size=60, dim=16, n_layers=3, n_heads=4, hidden_dim=24)
    ),
    "llama, grouped": lambda: LlamaForCausalLM(LlamaConfig(**WIDE, num_key_value_heads=2)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=60, n_embd=16, n_layer=3, n_head=4, n_positions=64)),
    "gemma3, scaled": lambda: Gemma3ForCausalLM(
        Gemma3TextConfig(**WIDE, num_key_value_heads=2, head_dim=4, query_pre_attn_scalar=9)
    ),
    "qwen3, normalised": lambda: Qwen3ForCausalLM(Qwen3Config(**WIDE, num_key_value_heads=4, head_dim=8)),
    "modernbert": lambda: ModernBertForSequenceClassification(
        ModernBertConfig(**WIDE, cls_token_id=1, sep_token_id=2, bos_token_id=1, eos_token_id=2)
    ),
}
TOKENS = torch.randint(3, 60, (2, 7), generator=torch.Generator().manual_seed(0))
INPUTS = {"input_ids": TOKENS, "attention_mask": torch.tensor([[1] * 7, [1] * 5 + [0] * 2])}
PARTS = ("query", "key", "value")


def made(name: str, implementation: str = "sdpa") -> nn.Module:
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)  # attention that is far from uniform
    model.set_attn_implementation(implementation)
    return model


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_hidden_states_are_those_that_transformers_reports(name):
    model = made(name)
    names = ["embeddings", *(f"layers.{layer}.hidden" for layer in range(3))]
    with capturing(model, names) as taken:
        states = model(**INPUTS, output_hidden_states=True).hidden_states
    assert set(taken) == set(names)
    for name_, state in list(zip(names, states, strict=True))[:-1]:  # the last one comes after the final norm
        torch.testing.assert_close(taken[name_], state)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_queries_and_keys_give_the_attention_that_transformers_reports(name, implementation):
    """softmax(q · k / √head_width) over the keys that may be seen, each key head repeated for its queries."""
    model, shape = made(name, implementation), shape_of(made(name).config)
    names = [f"layers.{layer}.{part}" for layer in range(3) for part in PARTS]
    with capturing(model, names) as taken:
        model(**INPUTS)
    attentions = made(name, "eager")(**INPUTS, output_attentions=True).attentions
    assert set(taken) == set(names)
    for layer, expected in enumerate(attentions):
        query, key, value = (taken[f"layers.{layer}.{part}"] for part in PARTS)
        assert query.shape == (2, shape.heads, 7, shape.head_width)
        assert key.shape == value.shape == (2, shape.key_value_heads, 7, shape.head_width)
        key = key.repeat_interleave(shape.heads // shape.key_value_heads, dim=1)
        seen = INPUTS["attention_mask"].bool()[:, None, None]
        seen = seen & torch.ones(7, 7).tril().bool() if shape.causal else seen
        scores = (query @ key.mT / shape.head_width**0.5).masked_fill(~seen, -torch.inf)
        real = INPUTS["attention_mask"].bool()
        torch.testing.assert_close(
            scores.softmax(-1).transpose(1, 2)[real], expected.transpose(1, 2)[real], rtol=1e-4, atol=1e-5
        )


def test_nothing_stays_behind():
    model = made("bert")
    kernel = ALL_ATTENTION_FUNCTIONS["sdpa"]
    with pytest.raises(RuntimeError, match="out of luck"), capturing(model, ["embeddings", "layers.0.query"]):
        raise RuntimeError("out of luck")
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is kernel
    with capturing(model, ["layers.0.query"]) as taken:
        pass
    model(**INPUTS)
    assert taken == {}


def test_another_model_inside_the_block_is_not_mistaken_for_this_one():
    model, other = made("bert"), made("distilbert")
    with capturing(model, ["layers.0.query", "layers.0.hidden"]) as taken:
        other(**INPUTS)
    assert taken == {}


def test_gradients_flow_into_what_was_captured():
    model = made("bert")
    with capturing(model, ["layers.1.key"]) as taken:
        model(**INPUTS)
    taken["layers.1.key"].sum().backward()
    stack = model.get_submodule(layer_stack(model, ""))
    assert stack[1].attention.self.key.weight.grad is not None
    assert stack[1].attention.self.value.weight.grad is None
    assert stack[2].attention.self.key.weight.grad is None


@pytest.mark.parametrize(
    ("wanted", "layers", "head"),
    [
        (Wanted(False, frozenset({"embeddings"})), 0, False),
        (Wanted(False, frozenset({"layers.0.hidden", "layers.1.value"})), 1, False),  # layer 1 ends at its attention
        (Wanted(False, frozenset({"layers.0.hidden", "layers.1.hidden"})), 2, False),
        (Wanted(True, frozenset({"layers.0.hidden"})), 3, True),
        (Wanted(True), 3, True),
    ],
)
def test_a_teacher_does_no_more_than_asked(wanted, layers, head):
    live = classifier(layers=3)
    finished = []
    for index, layer in enumerate(live.model.bert.encoder.layer):
        layer.register_forward_hook(lambda *_, index=index: finished.append(index))
    live.model.classifier.register_forward_hook(lambda *_: finished.append("head"))
    batch = live.task.collate([{"input_ids": [5, 6, 7], "label": 0}], live.tokenizer)
    signal = FrozenModel(live, wanted)(batch)
    assert len([step for step in finished if step != "head"]) == layers
    assert ("head" in finished) == head
    assert set(signal.features) == wanted.features
    assert (signal.logits is not None) == head


def test_a_teachers_answers_can_be_kept_for_the_backward_pass():
    for live in (classifier(), language_model()):
        batch = live.task.collate([{"input_ids": [5, 6, 7], "label": 0, "spans": [1, 3], "bytes": 1}], live.tokenizer)
        signal = FrozenModel(live, Wanted(True, frozenset({"layers.0.hidden"})))(batch)
        logits = signal.logits
        tensors = [logits.hidden, logits.weight] if isinstance(logits, HeadLogits) else [logits.values]
        for tensor in [*tensors, signal.features["layers.0.hidden"]]:
            assert not tensor.requires_grad
            leaf = torch.ones_like(tensor, requires_grad=True)
            (leaf * tensor).sum().backward()


def test_a_student_learns_through_its_features():
    live = classifier(layers=2)
    batch = live.task.collate([{"input_ids": [5, 6, 7], "label": 0}], live.tokenizer)
    signal = live(batch, Wanted(False, frozenset({"layers.0.hidden"})))
    assert signal.logits is not None  # a student runs to its end: its wrapper waits for every weight
    signal.features["layers.0.hidden"].sum().backward()
    assert live.model.bert.embeddings.word_embeddings.weight.grad is not None


def test_modules_are_captured_by_their_path():
    model = made("bert")
    with capturing(model, ["module:bert.pooler"]) as taken:
        output = model(**INPUTS)
    torch.testing.assert_close(model.classifier(taken["module:bert.pooler"]), output.logits)
    with pytest.raises(UserError, match=r"did you mean 'bert\.pooler'"), capturing(model, ["module:bert.poler"]):
        pass


@pytest.mark.parametrize(
    "model",
    [
        lambda: DebertaV2ForSequenceClassification(DebertaV2Config(**WIDE)),
        lambda: T5EncoderModel(T5Config(vocab_size=60, d_model=16, num_layers=3, num_heads=4, d_kv=4, d_ff=24)),
    ],
    ids=["no kernel of transformers", "scores with a bias"],
)
def test_a_model_whose_scores_are_more_than_queries_and_keys_is_refused(model):
    torch.manual_seed(0)
    model = model().eval()
    with capturing(model, ["layers.0.query"]) as taken:
        model(**INPUTS)
    with pytest.raises(UserError, match=r"student: .*does not show layers\.0\.query.*hidden states"):
        check_features(taken, ["layers.0.query"], model, "student")


def test_more_tokens_than_a_window_holds_are_refused():
    torch.manual_seed(0)
    config = ModernBertConfig(**WIDE, local_attention=4, cls_token_id=1, sep_token_id=2, bos_token_id=1, eos_token_id=2)
    model = ModernBertForSequenceClassification(config).eval()
    with pytest.raises(UserError, match=r"task\.max_length"), capturing(model, [f"layers.{i}.key" for i in range(3)]):
        model(**INPUTS)


@pytest.mark.parametrize("name", MODELS)
def test_a_models_shape_is_read_from_its_config(name):
    shape = shape_of(made(name).config)
    assert (shape.depth, shape.width, shape.heads) == (3, 16, 4)
    assert shape.causal == (name.split(",")[0] in ("llama", "gpt2", "gemma3", "qwen3"))


def test_batches_say_whether_they_count():
    batch = Batch({}, torch.ones(1).bool(), torch.ones(1), torch.ones(1).bool(), real=False)
    assert not batch.to(torch.device("cpu")).real
