"""Pruning, retraining with held zeros, casting, and the order of steps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from distillkit.compression.cast import Cast
from distillkit.compression.masks import hold, revived, smallest_masks
from distillkit.compression.prune import MagnitudePrune, prunable
from distillkit.compression.retrain import Retrain
from distillkit.compression.variant import Context, Kind, Step, Variant, check_chain
from distillkit.errors import UserError
from distillkit.models.live import LiveModel
from distillkit.models.tokenizers import ByteLevelBPE
from distillkit.schema import TrainSettings
from distillkit.tasks.causal_lm import CausalLM
from distillkit.tasks.sequence_classification import SequenceClassification

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
VOCABULARY = 258


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def bert() -> LiveModel:
    config = BertConfig(**SIZES, vocab_size=VOCABULARY, pad_token_id=1)
    return LiveModel(
        BertForSequenceClassification(config).eval(),
        ByteLevelBPE(VOCABULARY).train([]),
        SequenceClassification(max_length=32),
    )


def llama(tied: bool = False) -> LiveModel:
    config = LlamaConfig(**SIZES, vocab_size=VOCABULARY, pad_token_id=1, tie_word_embeddings=tied)
    return LiveModel(LlamaForCausalLM(config).eval(), ByteLevelBPE(VOCABULARY).train([]), CausalLM(max_length=32))


def context(live: LiveModel, folder: Path, retrain=None) -> Context:
    rows = live.task.encode({"text": ["a first text", "and one more"]}, live.tokenizer, None)
    names = list(rows)
    example = live.task.collate(
        [dict(zip(names, row, strict=True)) for row in zip(*rows.values(), strict=True)], live.tokenizer
    )
    return Context(example, TrainSettings(learning_rate=0.5, max_steps=7), retrain, folder)


def logits(live: LiveModel, batch) -> torch.Tensor:
    with torch.no_grad():
        answer = live(batch).logits
    return answer.rows(0, len(answer)).float()


def body_weights(live: LiveModel) -> dict[str, torch.Tensor]:
    """Name the prunable weights by hand: those of BERT's and Llama's layers."""
    return {
        name: weight
        for name, weight in live.model.named_parameters()
        if weight.dim() == 2 and (".layer." in name or ".layers." in name)
    }


@pytest.mark.parametrize("make", [bert, llama, lambda: llama(tied=True)])
@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.937])
def test_global_pruning_zeroes_exactly_the_smallest_weights_of_the_body(make, sparsity, tmp_path):
    live = make()
    before = {name: weight.clone() for name, weight in live.model.named_parameters()}
    expected_count = round(sparsity * sum(weight.numel() for weight in body_weights(live).values()))

    variant = MagnitudePrune(sparsity=sparsity, scope="global")(Variant(live), context(live, tmp_path))

    after = body_weights(live)
    zeros = {name: after[name] == 0 for name in after}
    assert sum(int(zero.sum()) for zero in zeros.values()) == expected_count
    largest_pruned = max(before[name][zero].abs().max() for name, zero in zeros.items() if zero.any())
    smallest_kept = min(before[name][~zero].abs().min() for name, zero in zeros.items() if not zero.all())
    assert largest_pruned <= smallest_kept
    for name, weight in live.model.named_parameters():
        untouched = ~zeros[name] if name in zeros else torch.ones_like(weight, dtype=torch.bool)
        assert torch.equal(weight[untouched], before[name][untouched]), name
    assert variant.notes["sparsity"] == pytest.approx(sparsity, abs=1e-4)
    assert "neither size nor speed" in variant.notes["caution"]


def test_layer_scope_prunes_the_same_share_of_every_layer(tmp_path):
    live = bert()
    MagnitudePrune(sparsity=0.25, scope="layer")(Variant(live), context(live, tmp_path))
    for name, weight in body_weights(live).items():
        assert int((weight == 0).sum()) == round(0.25 * weight.numel()), name


def test_a_pooler_of_small_weights_is_not_emptied(tmp_path):
    """Global pruning once zeroed a barely trained pooler whole: every row got the same answer."""
    live = bert()
    with torch.no_grad():
        live.model.bert.pooler.dense.weight.mul_(1e-3)
    MagnitudePrune(sparsity=0.5, scope="global")(Variant(live), context(live, tmp_path))
    assert (live.model.bert.pooler.dense.weight != 0).all()


def test_epsilon_prunes_what_is_below_it_and_nothing_else(tmp_path):
    live = bert()
    before = {name: weight.clone() for name, weight in body_weights(live).items()}
    MagnitudePrune(epsilon=0.01)(Variant(live), context(live, tmp_path))
    for name, weight in body_weights(live).items():
        assert torch.equal(weight, torch.where(before[name].abs() < 0.01, 0.0, before[name]))


def test_equal_magnitudes_are_pruned_to_the_exact_count():
    weights = {"a": torch.full((4, 4), 1.0), "b": torch.ones(3, 3), "c": torch.full((2, 2), 0.5)}
    masks = smallest_masks(weights, 0.5)
    assert sum(int((~mask).sum()) for mask in masks.values()) == round(0.5 * 29)
    assert not masks["c"].any()


def test_gpt2_convolutions_are_pruned_and_its_tied_head_is_not(tmp_path):
    config = GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=64, vocab_size=VOCABULARY)
    live = LiveModel(GPT2LMHeadModel(config).eval(), ByteLevelBPE(VOCABULARY).train([]), CausalLM(max_length=64))
    variant = MagnitudePrune(sparsity=0.5)(Variant(live), context(live, tmp_path))
    assert len(variant.masks) == 2 * 4
    assert all(".attn.c_" in name or ".mlp.c_" in name for name in variant.masks)
    assert (live.model.lm_head.weight != 0).all()


def test_excluded_modules_are_left_alone_and_a_pattern_without_match_is_refused(tmp_path):
    live = bert()
    pruned = MagnitudePrune(sparsity=0.5, exclude=["*.layer.0.*"])(Variant(live), context(live, tmp_path))
    assert pruned.masks
    assert all(".layer.1." in name for name in pruned.masks)
    with pytest.raises(UserError, match=r"'\*\.layer\.7\.\*'"):
        MagnitudePrune(sparsity=0.5, exclude=["*.layer.7.*"])(Variant(live), context(live, tmp_path))
    names = set(prunable(live.model, ["*.layer.0"]))
    assert names == set(prunable(live.model, ["*.layer.0.*"])) < set(prunable(live.model, []))


def test_pruning_again_reaches_the_new_target_and_keeps_the_old_zeros(tmp_path):
    live = bert()
    first = MagnitudePrune(sparsity=0.3, scope="global")(Variant(live), context(live, tmp_path))
    second = MagnitudePrune(sparsity=0.6, scope="global")(first, context(live, tmp_path))
    assert second.notes["sparsity"] == pytest.approx(0.6, abs=1e-4)
    assert all(not (mask & ~first.masks[name]).any() for name, mask in second.masks.items())


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"epsilon": 0.1, "sparsity": 0.5},
        {"sparsity": 1.5},
        {"epsilon": 0},
        {"sparsity": 0.5, "scope": "column"},
        {"pattern": "4:2"},
    ],
)
def test_bad_pruning_arguments_are_refused(arguments):
    with pytest.raises(UserError):
        MagnitudePrune(**arguments)


def sgd(live: LiveModel, masks, settings: TrainSettings, held: bool = True) -> None:
    """Train on constant targets, with momentum and decay, which both would revive zeros."""
    optimiser = torch.optim.AdamW(live.model.parameters(), lr=settings.learning_rate, weight_decay=0.1)
    batch = context(live, Path()).example
    for _ in range(settings.max_steps or 0):
        loss = live(batch).logits.rows(0, 2).logsumexp(dim=-1).sum()
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        if held:
            hold(live.model, masks)


def test_retraining_changes_the_kept_weights_and_revives_none(tmp_path):
    live = bert()
    seen = []

    def retrain(model, masks, settings):
        seen.append(settings)
        sgd(model, masks, settings)

    setting = context(live, tmp_path, retrain)
    pruned = MagnitudePrune(sparsity=0.5)(Variant(live), setting)
    before = {name: weight.clone() for name, weight in body_weights(live).items()}
    variant = Retrain(train={"learning_rate": 0.01})(pruned, setting)
    assert seen == [replace(setting.settings, learning_rate=0.01)]
    assert revived(live.model, variant.masks) == 0
    assert all(not torch.equal(weight, before[name]) for name, weight in body_weights(live).items())
    assert variant.notes["sparsity"] == pytest.approx(0.5, abs=1e-3)


def test_a_retraining_that_revives_zeros_is_an_error(tmp_path):
    live = bert()
    setting = context(live, tmp_path, lambda *arguments: sgd(*arguments, held=False))
    pruned = MagnitudePrune(sparsity=0.5)(Variant(live), setting)
    with pytest.raises(RuntimeError, match="revived"):
        Retrain()(pruned, setting)


@pytest.mark.parametrize("train", [{"learning_rte": 0.1}, {"max_steps": "many"}, {"schedule": "sawtooth"}])
def test_unknown_or_mistyped_train_settings_are_refused(train):
    with pytest.raises(UserError, match=r"^train\."):
        Retrain(train=train)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(("make", "auto"), [(bert, AutoModelForSequenceClassification), (llama, AutoModelForCausalLM)])
def test_a_cast_model_halves_answers_alike_and_loads_again_to_the_bit(make, auto, dtype, tmp_path):
    live = make()
    setting = context(live, tmp_path)
    expected = logits(live, setting.example)
    live.save(tmp_path / "float32")
    variant = Cast(dtype)(Variant(live), setting)
    answer = logits(live, setting.example)
    torch.testing.assert_close(answer, expected, rtol=0.05, atol=0.02)

    live.save(tmp_path / dtype)
    plain = auto.from_pretrained(tmp_path / dtype, dtype="auto")
    assert plain.dtype == getattr(torch, dtype)
    again = LiveModel(plain.eval(), live.tokenizer, live.task)
    assert torch.equal(logits(again, setting.example), answer)
    size = [(tmp_path / name / "model.safetensors").stat().st_size for name in (dtype, "float32")]
    assert size[0] < 0.55 * size[1]
    assert variant.notes["dtype"] == dtype


@pytest.mark.parametrize(("after", "cautious"), [(0.5, False), (1.05, False), (3.0, True)])
def test_a_cast_that_slows_answers_down_is_said_with_what_to_do(after, cautious, tmp_path, monkeypatch):
    live, times = bert(), iter([1.0, after])
    monkeypatch.setattr("distillkit.compression.cast._seconds", lambda *_: next(times))
    notes = Cast("float16")(Variant(live), context(live, tmp_path)).notes
    expected = "float16 halves the size, but answers 3.0 times slower than float32 on this CPU; try bfloat16, or"
    assert notes.get("caution", "").startswith(expected) if cautious else "caution" not in notes


def test_a_weight_beyond_the_range_of_float16_is_refused(tmp_path):
    live = bert()
    with torch.no_grad():
        live.model.classifier.weight[0, 0] = 1e6
    with pytest.raises(UserError, match=r"classifier\.weight.*bfloat16"):
        Cast("float16")(Variant(live), context(live, tmp_path))


def test_an_order_that_cannot_work_is_refused_before_anything_is_computed():
    prune, retrain, half = MagnitudePrune(sparsity=0.5), Retrain(), Cast("float16")
    check_chain({"prune": prune, "retrain": retrain, "half": half}, Kind.float32)
    with pytest.raises(UserError, match=r"compress\.steps\.retrain: .*float32.*half"):
        check_chain({"half": half, "retrain": retrain}, Kind.float32)
    with pytest.raises(UserError, match=r"compress\.steps\.prune: .*onnx"):
        check_chain({"prune": prune}, Kind.onnx)
    with pytest.raises(UserError, match=Step.__name__):
        check_chain({"loss": object()}, Kind.float32)
