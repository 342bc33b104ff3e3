"""Layers that were changed are not computed anew, and those behind them see what they would have seen."""

from __future__ import annotations

import pytest
import torch
from transformers import BartConfig, BartForConditionalGeneration, T5Config, T5ForConditionalGeneration

from distillkit.compression.gptq import input_products
from distillkit.compression.prune import prunable
from distillkit.compression.replay import Replay, layer_of
from distillkit.models.live import LiveModel
from distillkit.models.tokenizers import ByteLevelBPE
from distillkit.signals import Batch
from distillkit.tasks.seq2seq_lm import Seq2SeqLM
from tests.tiny import classifier, language_model

SIZES = {"vocab_size": 258, "pad_token_id": 1, "decoder_start_token_id": 0}
TEXTS = ["a first text", "and one more, longer than that"]


def t5() -> LiveModel:
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(T5Config(d_model=16, d_kv=8, d_ff=32, num_layers=3, num_heads=2, **SIZES))
    return LiveModel(model, ByteLevelBPE(258).train([]), Seq2SeqLM(max_length=32))


def bart() -> LiveModel:
    torch.manual_seed(0)
    sizes = {"encoder_layers": 3, "decoder_layers": 3, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    model = BartForConditionalGeneration(BartConfig(d_model=16, **sizes, **heads, **SIZES))
    return LiveModel(model, ByteLevelBPE(258).train([]), Seq2SeqLM(max_length=32))


MODELS = {"bert": lambda: classifier(layers=4), "llama": lambda: language_model(layers=4), "t5": t5, "bart": bart}


def batches(live: LiveModel) -> list[Batch]:
    columns = {"source": TEXTS, "target": TEXTS[::-1]} if live.model.config.is_encoder_decoder else {"text": TEXTS}
    rows = live.task.encode(columns, live.tokenizer, None)
    made = [dict(zip(rows, row, strict=True)) for row in zip(*rows.values(), strict=True)]
    return [live.task.collate(made, live.tokenizer), live.task.collate(made[:1], live.tokenizer)]


@pytest.mark.parametrize("name", MODELS)
def test_every_layer_sees_what_the_changed_ones_before_it_say_at_the_price_of_two_passes(name):
    live = MODELS[name]().eval()
    given, linear = batches(live), [name.removesuffix(".weight") for name in prunable(live.model, [])]
    layers = list(dict.fromkeys(map(layer_of, linear)))
    replay, calls = Replay(live, given), 0

    def count(*_) -> None:
        nonlocal calls
        calls += 1

    for layer in layers:
        here = {name: live.model.get_submodule(name) for name in linear if layer_of(name) == layer}
        expected = input_products(Replay(live, given), here)
        hooks = [module.register_forward_pre_hook(count) for name, module in modules_of(live, layers).items()]
        found = input_products(replay, here)
        for hook in hooks:
            hook.remove()
        torch.testing.assert_close(found, expected)
        with torch.no_grad():
            for module in here.values():
                module.weight.mul_(0.7)
        replay.finish(layer)
    assert len(layers) >= 4
    assert not any("forward" in vars(module) for module in live.model.modules())
    assert calls <= 2 * len(layers) * len(given)


def modules_of(live: LiveModel, layers: list[str]) -> dict[str, torch.nn.Module]:
    """Return of each layer its first linear map, which runs when the layer does."""
    found = {}
    for layer in layers:
        inside = live.model.get_submodule(layer).modules()
        found[layer] = next(module for module in inside if isinstance(module, torch.nn.Linear))
    return found
