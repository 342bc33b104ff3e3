"""Greedy continuations: those of transformers' own `generate`, for any runtime."""

from __future__ import annotations

import torch

from distillkit.data.encode import encode
from distillkit.data.files import FileDataset
from distillkit.evaluation.samples import beginnings, continue_greedily, samples
from distillkit.tasks.causal_lm import CausalLM
from tests.tiny import encoded, language_model, write_jsonl

CPU = torch.device("cpu")


def test_continuations_are_those_of_generate(tmp_path):
    live = language_model().eval()
    live.model.lm_head.weight.data *= 20
    prompts = beginnings(encoded(tmp_path, live.task), 5, 16)
    assert len({len(prompt) for prompt in prompts}) > 1
    found = continue_greedily(live, prompts, 8, live.tokenizer, CPU)
    for prompt, text in zip(prompts, found, strict=True):
        ids = torch.tensor([prompt])
        expected = live.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False, pad_token_id=1
        )
        assert text == expected[0, len(prompt) :].tolist()


def test_a_text_that_has_ended_goes_no_further():
    live = language_model().eval()
    live.model.lm_head.weight.data.zero_()
    live.model.lm_head.weight.data[live.tokenizer.eos_token_id] = 1
    live.model.model.norm.weight.data.abs_()
    live.model.model.embed_tokens.weight.data.abs_()
    found = continue_greedily(live, [[5, 6], [7]], 8, live.tokenizer, CPU)
    for text in found:
        assert len(text) <= 8
        assert live.tokenizer.eos_token_id not in text[:-1]


def test_prompts_are_prompts_and_texts_begin(tmp_path):
    live = language_model()
    lines = [{"prompt": "what a joy", "completion": "to see this"}]
    columns = {"prompt": "prompt", "completion": "completion"}
    data = FileDataset(train=str(write_jsonl(tmp_path / "a.jsonl", lines)), columns=columns).load()
    asked = encode(data, "train", CausalLM(max_length=32), live.tokenizer, None)
    assert live.tokenizer.decode(beginnings(asked, 3, 16)[0]) == "what a joy"
    texts = encoded(tmp_path, live.task)
    for index, prompt in enumerate(beginnings(texts, 4, 16)):
        ids = texts.rows[index]["input_ids"]
        assert ids[: len(prompt)] == prompt
        assert 1 <= len(prompt) <= max(1, len(ids) // 2)


def test_models_stand_side_by_side(tmp_path):
    models = {"a": language_model().eval(), "b": language_model(seed=1).eval()}
    prompts = beginnings(encoded(tmp_path, models["a"].task), 2, 16)
    found = samples(models, prompts, 4, models["a"].tokenizer, CPU)
    assert [list(sample.continuations) for sample in found] == [["a", "b"]] * 2
    assert found[0].prompt == models["a"].tokenizer.decode(prompts[0], skip_special_tokens=True)
