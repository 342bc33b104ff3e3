"""Answers are what the model writes for each prompt alone, however rows come and go; draws belong to the row."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    GPT2Config,
    GPT2LMHeadModel,
    M2M100Config,
    M2M100ForConditionalGeneration,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from distillkit.errors import UserError
from distillkit.generation.backends.base import LENGTH, STOP, Answer, Prompt, Sampling
from distillkit.generation.backends.local import ModelWriter, Transformers
from distillkit.generation.decoding.choose import choose, draws
from distillkit.generation.decoding.rows import CausalRows, Seq2SeqRows, can_stagger
from distillkit.models.live import LiveModel
from distillkit.tasks.causal_lm import CausalLM
from distillkit.tasks.seq2seq_lm import Seq2SeqLM
from tests.tiny import language_model, llama, tokenizer

VOCABULARY, END, PADDING = 320, 0, 1
SPECIAL = {"vocab_size": VOCABULARY, "eos_token_id": END, "pad_token_id": PADDING, "bos_token_id": END}
SMALL = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
SMALL |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "decoder_start_token_id": 2}


def gpt2():
    return GPT2LMHeadModel(GPT2Config(**SPECIAL, n_embd=16, n_layer=2, n_head=2, n_positions=64))


def mistral():
    """Whose layers look no further back than five tokens."""
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return MistralForCausalLM(MistralConfig(**SPECIAL, **size, num_key_value_heads=1, sliding_window=5))


def t5():
    size = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    return T5ForConditionalGeneration(T5Config(**SPECIAL, **size, decoder_start_token_id=PADDING))


def bart():
    """Whose decoder counts positions by its cache."""
    return BartForConditionalGeneration(BartConfig(**SPECIAL, **SMALL, forced_eos_token_id=END))


def m2m():
    """Whose decoder counts positions in a way that nothing changes."""
    return M2M100ForConditionalGeneration(M2M100Config(**SPECIAL, **SMALL))


def mamba():
    """Which keeps a state, and no keys and values."""
    return MambaForCausalLM(MambaConfig(**SPECIAL, hidden_size=16, state_size=4, num_hidden_layers=2))


MODELS = {"mamba": mamba, "llama": llama, "gpt2": gpt2, "mistral": mistral, "t5": t5, "bart": bart, "m2m": m2m}


def live(name: str) -> LiveModel:
    torch.manual_seed(0)
    model = MODELS[name]()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6)  # so that answers differ from prompt to prompt
    task = Seq2SeqLM(generate="never") if model.config.is_encoder_decoder else CausalLM(max_length=32)
    return LiveModel(model, tokenizer(), task).eval()


def prompts(count: int = 11) -> list[Prompt]:
    random = np.random.default_rng(0)
    return [
        Prompt("", ids=random.integers(3, VOCABULARY, random.integers(1, 14)).tolist(), draw=(7, index))
        for index in range(count)
    ]


def alone(teacher: LiveModel, prompt: Prompt, tokens: int, **options) -> list[int]:
    ids = torch.tensor([prompt.ids])
    output = teacher.model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=tokens,
        pad_token_id=PADDING,
        eos_token_id=END,
        **options,
    )
    return output[0, 1 if teacher.model.config.is_encoder_decoder else ids.shape[1] :].tolist()


@torch.no_grad()
def cost(teacher: LiveModel, prompt: Prompt, said: list[int]) -> float:
    """Log-probability of an answer, by one forward pass over the whole of it."""
    if teacher.model.config.is_encoder_decoder:
        start = teacher.model.config.decoder_start_token_id
        read = {"input_ids": torch.tensor([prompt.ids]), "decoder_input_ids": torch.tensor([[start, *said[:-1]]])}
        logits = teacher.model(**read).logits[0]
    else:
        logits = teacher.model(input_ids=torch.tensor([prompt.ids + said[:-1]])).logits[0, len(prompt.ids) - 1 :]
    return float(logits.double().log_softmax(-1)[range(len(said)), said].sum())


@pytest.mark.parametrize("name", MODELS)
def test_greedy_answers_are_those_of_generate_one_by_one(name):
    teacher, asked = live(name), prompts()
    ModelWriter(teacher, 1)  # which lets no model write an end that it would not choose
    expected = [alone(teacher, prompt, 9) for prompt in asked]
    assert len({tuple(tokens) for tokens in expected}) > 3
    for batch_size in (1, 4, 16):
        writer = ModelWriter(teacher, batch_size)
        assert writer.staggers == (name not in ("m2m", "mamba"))
        for prompt, tokens, (answer,) in zip(asked, expected, writer.answer(asked, Sampling(9)), strict=True):
            assert answer.tokens == len(tokens)
            assert answer.finish_reason == (STOP if tokens[-1] == END else LENGTH)
            kept = tokens[:-1] if tokens[-1] == END else tokens
            assert answer.text == teacher.tokenizer.decode(kept, skip_special_tokens=True)
            assert answer.log_prob == pytest.approx(cost(teacher, prompt, tokens), rel=1e-4)


@pytest.mark.parametrize("name", ["llama", "m2m"])
def test_draws_belong_to_the_row_and_not_to_the_batch(name):
    teacher, asked = live(name), prompts(5)
    sampling = Sampling(6, samples=3, temperature=1.0, top_p=0.9)
    whole = ModelWriter(teacher, 4).answer(asked, sampling)
    torch.manual_seed(5)
    parts = [ModelWriter(teacher, 16).answer([prompt], sampling)[0] for prompt in reversed(asked)]
    assert [[one.text for one in several] for several in reversed(parts)] == [[a.text for a in row] for row in whole]
    assert all(len({answer.text for answer in several}) > 1 for several in whole)


def test_every_number_of_samples_is_answered_with_any_batch_size():
    teacher, asked = live("llama"), prompts(4)
    for batch_size in (1, 3, 5):
        found = ModelWriter(teacher, batch_size).answer(asked, Sampling(4, samples=4, temperature=1.0))
        assert [len(several) for several in found] == [4] * 4


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_beams_are_those_of_generate_one_by_one(name):
    teacher, asked = live(name), prompts(5)
    for prompt, (answer,) in zip(asked, ModelWriter(teacher, 8).answer(asked, Sampling(6, beams=3)), strict=True):
        tokens = alone(teacher, prompt, 6, num_beams=3)
        assert answer.text == teacher.tokenizer.decode([t for t in tokens if t != END], skip_special_tokens=True)
        assert answer.log_prob == pytest.approx(cost(teacher, prompt, tokens), rel=1e-3)


@pytest.mark.parametrize(
    ("name", "setting", "staggers"),
    [
        ("llama", {"repetition_penalty": 1.8}, True),
        ("t5", {"repetition_penalty": 1.8}, True),
        ("llama", {"no_repeat_ngram_size": 1}, False),
    ],
)
def test_what_a_models_own_settings_ask_for_is_done(name, setting, staggers):
    teacher, asked = live(name), prompts(6)
    plain = ModelWriter(teacher, 4).answer(asked, Sampling(8))
    vars(teacher.model.generation_config).update(setting)
    writer = ModelWriter(teacher, 4 if staggers else 1)
    assert writer.staggers == staggers
    answers = writer.answer(asked, Sampling(8))
    expected = [alone(teacher, prompt, 8) for prompt in asked]
    texts = [teacher.tokenizer.decode([t for t in row if t != END], skip_special_tokens=True) for row in expected]
    assert [answer.text for (answer,) in answers] == texts
    assert [answer.text for (answer,) in plain] != texts


def test_an_answer_stays_within_the_models_positions():
    teacher = live("gpt2")
    asked = [Prompt("", ids=list(range(3, 3 + length))) for length in (60, 64, 70)]
    found = ModelWriter(teacher, 2).answer(asked, Sampling(9))
    assert [answer.tokens for (answer,) in found][1:] == [0, 0]
    assert found[0][0].tokens <= 4
    assert found[1][0] == Answer("", LENGTH, 0, 0.0)


def test_a_stop_text_ends_an_answer_and_is_no_part_of_it():
    teacher, asked = live("llama"), prompts()
    plain = [answers[0].text for answers in ModelWriter(teacher, 4).answer(asked, Sampling(9))]
    stop = plain[0][len(plain[0]) // 2]
    found = [answers[0] for answers in ModelWriter(teacher, 4).answer(asked, Sampling(9, stop=(stop,)))]
    for before, answer in zip(plain, found, strict=True):
        assert answer.text == before.partition(stop)[0]
        assert answer.finished or stop not in before


def test_a_continuation_keeps_the_space_at_its_beginning():
    teacher = language_model().eval()
    ids = teacher.tokenizer("a fine")["input_ids"]
    (answer,) = ModelWriter(teacher, 1).answer([Prompt("a fine", ids=ids, continues=True)], Sampling(5))[0]
    new = alone(teacher, Prompt("", ids=ids), 5)
    assert "a fine" + answer.text == teacher.tokenizer.decode(ids + new, skip_special_tokens=True)


def test_an_encoder_may_have_more_layers_than_its_decoder():
    config = T5Config(**SPECIAL, d_model=16, d_kv=8, d_ff=32, num_layers=3, num_decoder_layers=1, num_heads=2)
    config.decoder_start_token_id = PADDING
    assert can_stagger(T5ForConditionalGeneration(config).eval(), PADDING)


def test_what_keeps_no_keys_and_values_is_left_to_generate():
    assert CausalRows.suits(llama())
    assert Seq2SeqRows.suits(t5())
    assert not can_stagger(m2m().eval(), PADDING)


def distribution(logits: torch.Tensor, sampling: Sampling, count: int = 40_000) -> torch.Tensor:
    numbers = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    tokens, _ = choose(logits.expand(count, -1), numbers, sampling)
    return torch.bincount(tokens, minlength=logits.shape[-1]) / count


def test_tokens_are_drawn_as_often_as_they_are_likely():
    torch.manual_seed(0)
    logits = torch.randn(1, 300) * 2
    for temperature in (0.5, 1.0, 2.0):
        expected = (logits[0] / temperature).softmax(-1)
        found = distribution(logits, Sampling(temperature=temperature))
        assert (found - expected).abs().max() < 1e-4


@pytest.mark.parametrize(("top_p", "top_k"), [(0.3, None), (0.95, None), (0.999, None), (1.0, 5), (0.8, 20)])
def test_only_the_most_likely_tokens_are_drawn(top_p, top_k):
    torch.manual_seed(0)
    logits = torch.randn(1, 300)
    probabilities, ids = logits[0].double().softmax(-1).sort(descending=True)
    kept = torch.arange(300) < (300 if top_k is None else top_k)
    probabilities = probabilities * kept / (probabilities * kept).sum()
    kept &= probabilities.cumsum(0) - probabilities < top_p
    expected = torch.zeros(300, dtype=torch.float64)
    expected[ids[kept]] = probabilities[kept] / probabilities[kept].sum()
    found = distribution(logits, Sampling(temperature=1.0, top_p=top_p, top_k=top_k))
    assert (found - expected).abs().max() < 1e-4


def test_the_log_probability_is_that_of_the_whole_distribution():
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(1))
    tokens, log_probs = choose(logits, torch.full((3,), 0.5).double(), Sampling(temperature=3.0, top_k=2))
    expected = logits.log_softmax(-1).gather(1, tokens.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(log_probs, expected)


def test_draws_depend_on_the_seed_alone():
    assert draws((1, 2, 3), 5).tolist() == draws((1, 2, 3), 9).tolist()[:5]
    assert len({draws(seed, 1)[0] for seed in ((1, 2), (2, 1), (1, 2, 0), (12,))}) >= 3
    assert math.isclose(np.mean(draws((0,), 10_000)), 0.5, abs_tol=0.02)


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"samples": 2}, "samples"),
        ({"beams": 2, "temperature": 1.0}, "beams"),
        ({"top_k": 0}, "top_k"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, key):
    with pytest.raises(UserError, match=rf"^generate\.{key}"):
        Sampling(**settings)
    with pytest.raises(UserError, match="batch_size"):
        Transformers(batch_size=0)
