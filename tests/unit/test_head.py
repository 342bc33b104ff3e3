"""The head taken apart: soft caps and scales are honoured, what is not known is refused."""

from __future__ import annotations

import sys

import peft
import pytest
import torch
from torch import nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    CohereConfig,
    CohereForCausalLM,
    DistilBertConfig,
    DistilBertForMaskedLM,
    FalconH1Config,
    FalconH1ForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaForCausalLM,
    MarianConfig,
    MarianMTModel,
    MobileBertConfig,
    MobileBertForMaskedLM,
    OPTConfig,
    OPTForCausalLM,
    RobertaConfig,
    RobertaForMaskedLM,
    T5Config,
    T5ForConditionalGeneration,
)

from distillkit.errors import UserError
from distillkit.models.head import check_head, head_signal
from distillkit.signals import Batch, HeadLogits
from tests.tiny import llama

SIZES = {
    "vocab_size": 60,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 1,
}
ENCODER = {
    "vocab_size": 60,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}
T5 = {"vocab_size": 60, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}
BART = {
    "vocab_size": 60,
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "max_position_embeddings": 32,
    "pad_token_id": 1,
    "decoder_start_token_id": 2,
}


def biased(model):
    """Give it a bias of its logits that is not zero, as published models have."""
    model.final_logits_bias.normal_()
    return model


MODELS = {
    "llama": lambda: llama(layers=1),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=60, n_embd=16, n_layer=1, n_head=2)),
    "opt": lambda: OPTForCausalLM(
        OPTConfig(
            vocab_size=60, hidden_size=16, word_embed_proj_dim=8, num_hidden_layers=1, num_attention_heads=2, ffn_dim=8
        )
    ),
    "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**SIZES, head_dim=8, final_logit_softcapping=3.0)),
    "cohere": lambda: CohereForCausalLM(CohereConfig(**SIZES, logit_scale=0.0625)),
    "granite": lambda: GraniteForCausalLM(GraniteConfig(**SIZES, logits_scaling=8.0)),
    "bert": lambda: BertForMaskedLM(BertConfig(**ENCODER)),
    "distilbert": lambda: DistilBertForMaskedLM(
        DistilBertConfig(vocab_size=60, dim=16, n_layers=1, n_heads=2, hidden_dim=24)
    ),
    "roberta": lambda: RobertaForMaskedLM(RobertaConfig(**ENCODER, max_position_embeddings=32)),
    "t5": lambda: T5ForConditionalGeneration(T5Config(**T5)),
    "untied t5": lambda: T5ForConditionalGeneration(T5Config(**T5, tie_word_embeddings=False)),
    "bart": lambda: biased(BartForConditionalGeneration(BartConfig(**BART))),
    "marian": lambda: biased(MarianMTModel(MarianConfig(**BART))),
}


class Transformed(LlamaForCausalLM):
    """A model that does to its logits what no config says."""

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = self.change(output.logits)
        return output


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("size", [1.0, 30.0])
def test_head_logits_are_the_models_own(name, size):
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(size)
    check_head(model)
    ids = torch.randint(2, 60, (2, 7))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if model.config.is_encoder_decoder:
        ids = inputs["decoder_input_ids"] = torch.randint(2, 60, (2, 5))
    counted = torch.rand(ids.shape) > 0.4
    with torch.no_grad():
        logits = head_signal(model, Batch(inputs, counted, ids[counted], counted[counted])).logits
        own = model(**inputs).logits
    assert isinstance(logits, HeadLogits)
    torch.testing.assert_close(logits.rows(0, len(logits)), own[counted], rtol=1e-5, atol=1e-5)
    with torch.no_grad():  # with gradients, some processors multiply in another order
        torch.testing.assert_close(model(**inputs).logits, own, rtol=0, atol=0)


@pytest.mark.parametrize(
    "change",
    [lambda x: 1.01 * x, lambda x: 30 * (x / 30).tanh(), lambda x: x + 1, lambda x: x[..., :-1]],
    ids=["scale", "soft cap", "shift", "cut"],
)
@pytest.mark.parametrize("size", [0.01, 1.0])
def test_an_unknown_transformation_is_refused_also_for_small_untrained_logits(change, size):
    model = Transformed(llama(layers=1).config)
    model.change = change
    with torch.no_grad():
        model.lm_head.weight.mul_(size)
    model.train()
    with pytest.raises(UserError, match="transforms its logits"):
        check_head(model)
    assert model.training


def test_an_architecture_with_a_multiplier_of_its_own_is_refused():
    mamba = {"mamba_d_ssm": 16, "mamba_n_heads": 2, "mamba_d_head": 8, "mamba_d_state": 4}
    config = FalconH1Config(**SIZES, **mamba, head_dim=8, lm_head_multiplier=0.5)
    with pytest.raises(UserError, match="FalconH1ForCausalLM"):
        check_head(FalconH1ForCausalLM(config))


def test_half_precision_passes():
    for name in ("llama", "gemma2"):
        check_head(MODELS[name]().bfloat16())


def test_a_head_that_is_not_linear_is_refused():
    model = llama(layers=1)
    model.lm_head = nn.Sequential(nn.Linear(16, 320))
    with pytest.raises(UserError, match="output head"):
        check_head(model)


def test_a_head_that_the_model_does_not_call_is_refused():
    sizes = ENCODER | {"embedding_size": 8, "true_hidden_size": 16, "intra_bottleneck_size": 16}
    with pytest.raises(UserError, match="MobileBertForMaskedLM does not use its output head as one linear layer"):
        check_head(MobileBertForMaskedLM(MobileBertConfig(**sizes)))


def adapted(**settings):
    """A language model with an adapter on its head that has learned something already."""
    model = peft.get_peft_model(llama(layers=1), peft.LoraConfig(target_modules=["lm_head"], **settings))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.normal_()
    return model


def asked(model) -> tuple[HeadLogits, torch.Tensor]:
    """The head's logits of some tokens, and the model's own."""
    ids = torch.randint(2, 60, (2, 7), generator=torch.Generator().manual_seed(0))
    counted = ids % 3 > 0
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    logits = head_signal(model, Batch(inputs, counted, ids[counted], counted[counted])).logits
    return logits, model(**inputs).logits[counted]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_adapter_on_the_head_gets_the_gradients_that_it_gets_in_the_model(dtype):
    model = adapted(r=4, lora_alpha=6).to(dtype)
    check_head(model)
    logits, own = asked(model)
    exactness = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.05, "atol": 0.2}
    torch.testing.assert_close(logits.rows(0, len(logits)), own, **exactness)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert len(trained) == 2
    ours, theirs = (torch.autograd.grad(x.float().square().mean(), trained) for x in (logits.rows(0, len(logits)), own))
    for mine, reference in zip(ours, theirs, strict=True):
        assert (mine - reference).norm() <= (1e-5 if dtype == torch.float32 else 0.05) * reference.norm()


def test_an_adapter_that_is_switched_off_or_merged_is_honoured():
    model = adapted(r=4)
    with model.disable_adapter():
        logits, own = asked(model)
        torch.testing.assert_close(logits.rows(0, len(logits)), own)
    model.merge_adapter()
    logits, own = asked(model)
    torch.testing.assert_close(logits.rows(0, len(logits)), own)


def test_a_head_trained_in_full_beside_adapters():
    settings = peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"])
    model = peft.get_peft_model(llama(layers=1), settings)
    with torch.no_grad():
        model.get_output_embeddings().modules_to_save["default"].weight.normal_()
    check_head(model)
    logits, own = asked(model)
    torch.testing.assert_close(logits.rows(0, len(logits)), own)
    assert logits.weight.requires_grad


def test_dropout_of_an_adapter_on_the_head_drops():
    model = adapted(r=4, lora_dropout=0.5)
    kept = asked(model.eval())[0].hidden[:, -4:]
    dropped = asked(model.train())[0].hidden[:, -4:]
    assert not torch.allclose(kept, dropped)


@pytest.mark.parametrize("settings", [{"use_dora": True}, {"lora_bias": True}])
def test_an_adapter_on_the_head_that_is_more_than_a_product_is_refused(settings):
    with pytest.raises(UserError, match="more than a product"):
        check_head(adapted(r=4, **settings))


def test_peft_is_not_needed_without_an_adapter(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "peft"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "peft", None)
    check_head(llama(layers=1))
