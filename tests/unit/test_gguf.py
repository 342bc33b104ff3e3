"""GGUF files: what plain transformers read from them, what rounding costs, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Regex, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

from distillkit.commands.reloading import check_in_fresh_process, remember
from distillkit.compression.gguf import Gguf
from distillkit.compression.variant import Variant
from distillkit.errors import UserError
from distillkit.evaluation.size import size_on_disk
from distillkit.models.gguf import alternating
from distillkit.models.gguf_tokens import SPLITS, splitting
from distillkit.models.live import LiveModel
from distillkit.models.load import load_live
from tests.compressing import batch, context, family, logits
from tests.tiny import tokenizer

WIDE = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 96, "vocab_size": 330}
MODELS = {
    "llama": ("llama", {}),
    "llama, tied, with fewer heads": ("llama", {"head_dim": 16, "num_attention_heads": 2, "tie_word_embeddings": True}),
    "qwen2, tied": ("qwen2", {"tie_word_embeddings": True}),
}


def live_model(name: str, **changes) -> LiveModel:
    kind, own = MODELS[name]
    return LiveModel(family(kind, **WIDE | own | changes).model, tokenizer(), family(kind).task)


def written(live: LiveModel, dtype: str, folder: Path) -> tuple[Variant, Path]:
    step = Gguf(dtype)
    step.check(live)
    variant = step(Variant(live), context(live, folder))
    variant.model.save(folder / "saved")
    return variant, folder / "saved"


@pytest.mark.parametrize("name", MODELS)
def test_plain_transformers_read_model_and_tokenizer_of_the_file_alone(name, tmp_path):
    live = live_model(name)
    expected, question = logits(live), batch(live)
    variant, folder = written(live, "f32", tmp_path)
    assert torch.equal(logits(variant.model), expected)
    alone = tmp_path / "alone"
    alone.mkdir()
    (folder / "model.gguf").rename(alone / "model.gguf")
    model = AutoModelForCausalLM.from_pretrained(alone, gguf_file="model.gguf").eval()
    with torch.no_grad():
        found = model(**question.inputs).logits[question.counted]
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    read = AutoTokenizer.from_pretrained(alone, gguf_file="model.gguf")
    for text in ("Hello wörld, it's 12345 o'clock\n  yes", "a fine and happy day", "</s> <pad>"):
        assert read(text).input_ids == live.tokenizer(text).input_ids
    assert (read.eos_token_id, read.pad_token_id) == (live.tokenizer.eos_token_id, live.tokenizer.pad_token_id)


@pytest.mark.parametrize(
    ("dtype", "codes", "steps", "share"),
    [("q8_0", 127, 0.5, 0.27), ("q5_0", 16, 1.0, 0.18), ("q4_0", 8, 1.0, 0.15)],
)
def test_every_weight_is_within_a_step_of_its_block(dtype, codes, steps, share, tmp_path):
    """The largest magnitude of 32 neighbours is `codes` steps; below 8 bits the top code of the other sign is cut."""
    live = live_model("llama", hidden_size=128)
    before = {name: weight.clone() for name, weight in live.model.state_dict().items()}
    variant, folder = written(live, dtype, tmp_path)
    for name, weight in variant.model.model.state_dict().items():
        if weight.dim() == 1:
            assert torch.equal(weight, before[name])
            continue
        most, allowed = (codes, steps) if ".layers." in name else (127, 0.5)
        blocks = before[name].view(len(weight), -1, 32)
        step = blocks.abs().amax(dim=-1, keepdim=True) / most
        error = (weight.view_as(blocks) - blocks).abs() / step
        assert float(error.max()) <= allowed + most * 2**-11  # steps are kept in half precision
    matrices = 4 * sum(weight.numel() for name, weight in before.items() if ".layers." in name)
    edges = 4 * sum(weight.numel() for name, weight in before.items() if ".layers." not in name)
    assert size_on_disk(str(folder)) < share * matrices + 0.27 * edges + 20_000  # tokens
    again = load_live(str(folder), live.task, "model", dtype="auto")
    assert torch.equal(logits(again), logits(variant.model))


def test_a_fresh_process_reads_it(tmp_path):
    live = live_model("llama")
    variant, folder = written(live, "q8_0", tmp_path)
    check_in_fresh_process({"gguf": remember(variant.model, batch(live), folder)})


def test_halves_of_heads_are_stored_alternately():
    rows = torch.arange(12.0).unsqueeze(1)
    assert alternating(rows, 2)[:, 0].tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("llama", {"mlp_bias": True}, "no GGUF is written of llama models with mlp_bias=True"),
        ("llama", {"hidden_act": "gelu"}, "llama models with hidden_act=gelu"),
        ("qwen2, tied", {"head_dim": 8}, "qwen2 models with head_dim=8"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
            "llama models with rope_type=linear; it knows llama and qwen2; use compress=int8",
        ),
    ],
)
def test_what_the_format_cannot_express_is_refused_before_anything_is_computed(name, changes, message):
    with pytest.raises(UserError, match=message):
        Gguf().check(live_model(name, **changes))


def test_other_models_and_arguments_are_refused():
    with pytest.raises(UserError, match="no GGUF is written of gpt2 models"):
        Gguf().check(family("gpt2"))
    with pytest.raises(UserError, match="GGUF holds language models, and this one is for sequence_classification"):
        Gguf().check(family("bert"))
    with pytest.raises(UserError, match=r"^dtype: unknown dtype 'q8'; did you mean 'q8_0'"):
        Gguf("q8")


def splitter(*steps) -> str:
    tokens = tokenizer()
    tokens.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(list(steps))
    return splitting(tokens)


def test_ways_of_splitting_have_llama_cpp_names():
    bytewise = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    qwen = next(pattern for pattern, name in SPLITS.items() if name == "qwen2")
    assert splitting(tokenizer()) == "gpt-2"
    assert splitter(pre_tokenizers.Split(Regex(qwen), "isolated"), bytewise) == "qwen2"
    assert splitter(pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)) == "smollm"
    for steps in (
        [pre_tokenizers.Whitespace()],
        [pre_tokenizers.Split(Regex("x"), "isolated"), bytewise],
        [pre_tokenizers.ByteLevel(add_prefix_space=True)],
        [pre_tokenizers.Digits(individual_digits=False), pre_tokenizers.ByteLevel(False)],
    ):
        with pytest.raises(UserError, match="GGUF has no name for the way in which this tokenizer splits texts"):
            splitter(*steps)


def test_merges_of_whole_words_that_go_first_belong_to_llama_3():
    """`ignore_merges` is what llama.cpp does for that name and for no other."""
    tokens = tokenizer()
    state = json.loads(tokens.backend_tokenizer.to_str())
    state["model"]["ignore_merges"] = True
    tokens._tokenizer = type(tokens.backend_tokenizer).from_str(json.dumps(state))
    with pytest.raises(UserError, match="GGUF has no name"):
        splitting(tokens)
