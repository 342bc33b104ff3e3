"""The head taken apart: soft caps and scales are honoured, what is not known is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    FalconH1Config,
    FalconH1ForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
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
    counted = torch.rand(2, 7) > 0.4
    with torch.no_grad():
        logits = head_signal(model, Batch(inputs, counted, ids[counted], counted[counted])).logits
        own = model(**inputs).logits
    assert isinstance(logits, HeadLogits)
    torch.testing.assert_close(logits.rows(0, len(logits)), own[counted], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model(**inputs).logits, own)


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
