"""Fewer layers, units and heads: what goes, what it costs, and that stock transformers loads the rest."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from distillkit.compression.activations import input_moments
from distillkit.compression.depth import DropLayers
from distillkit.compression.ffn import NarrowFFN, feed_forwards, importance
from distillkit.compression.heads import DropHeads
from distillkit.compression.structure import matrix_of
from distillkit.compression.variant import Step, Variant
from distillkit.errors import UserError
from distillkit.models.live import LiveModel
from tests.compressing import batch, context, copied, family, logits

FAMILIES = ["bert", "roberta", "distilbert", "llama", "qwen2", "gpt2", "t5", "bart"]


def applied(step: Step, live: LiveModel, folder: Path) -> LiveModel:
    small = copied(live)
    step.check(small)
    model = step(Variant(small), context(small, folder)).model
    assert isinstance(model, LiveModel)
    return model


def reloaded(live: LiveModel, folder: Path) -> LiveModel:
    live.save(folder / "model")
    model, info = type(live.model).from_pretrained(folder / "model", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    return LiveModel(model.eval(), live.tokenizer, live.task)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(
    "step",
    [DropLayers(2), DropLayers(3, by="angular"), NarrowFFN(0.5)],
    ids=["two layers", "three by angle", "half the units"],
)
def test_what_is_left_is_smaller_and_loads_in_stock_transformers(name, step, tmp_path):
    live = family(name)
    small = applied(step, live, tmp_path)
    assert small.count_parameters() < live.count_parameters()
    torch.testing.assert_close(logits(reloaded(small, tmp_path)), logits(small), rtol=0, atol=1e-6)
    assert not torch.allclose(logits(small), logits(live), atol=1e-3)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("step", [DropLayers(4), NarrowFFN(1.0)], ids=["layers", "units"])
def test_keeping_everything_changes_nothing(name, step, tmp_path):
    live = family(name)
    torch.testing.assert_close(logits(applied(step, live, tmp_path)), logits(live), rtol=0, atol=1e-6)


def layer_inputs(live: LiveModel) -> list[torch.Tensor]:
    """Return the hidden states before each layer and after the last, tokens only."""
    asked = batch(live)
    with torch.no_grad():
        states = live.model(**asked.inputs, output_hidden_states=True).hidden_states
    return [state[asked.inputs["attention_mask"].bool()].double() for state in states]


def test_the_layers_of_least_influence_go(tmp_path):
    live = family("bert")
    states = layer_inputs(live)
    influence = [float((1 - functional.cosine_similarity(a, b, dim=-1)).mean()) for a, b in pairwise(states)]
    expected = sorted(sorted(range(4), key=influence.__getitem__)[2:])
    step = DropLayers(2)
    assert step(Variant(live), context(live, tmp_path)).notes["layers"] == expected


def test_the_block_at_the_smallest_angle_goes(tmp_path):
    live = family("bert")
    states = layer_inputs(live)
    angles = [
        float(functional.cosine_similarity(states[start], states[start + 2], dim=-1).arccos().mean())
        for start in range(3)
    ]
    first = angles.index(min(angles))
    expected = [layer for layer in range(4) if layer not in (first, first + 1)]
    assert DropLayers(2, by="angular")(Variant(live), context(live, tmp_path)).notes["layers"] == expected


def test_a_layer_that_does_nothing_goes_first(tmp_path):
    live = family("llama")
    with torch.no_grad():
        layer = live.model.model.layers[2]
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    small = applied(DropLayers(3), live, tmp_path)
    torch.testing.assert_close(logits(small), logits(live), rtol=0, atol=1e-5)


@pytest.mark.parametrize("keep", [[0, 2], [3]])
def test_named_layers_are_kept(keep, tmp_path):
    live = family("gpt2")
    small = applied(DropLayers(keep), live, tmp_path)
    for new, old in enumerate(keep):
        kept, whole = small.model.transformer.h[new], live.model.transformer.h[old]
        assert torch.equal(kept.mlp.c_fc.weight, whole.mlp.c_fc.weight)


def test_encoder_and_decoder_are_cut_apart(tmp_path):
    live = family("t5")
    small = applied(DropLayers(3, decoder_keep=[1]), live, tmp_path)
    assert (small.model.config.num_layers, small.model.config.num_decoder_layers) == (3, 1)


@pytest.mark.parametrize("beams", [1, 3])
def test_a_decoder_deeper_than_its_encoder_writes_in_stock_transformers(beams, tmp_path):
    """With keys and values kept as without, where each token is written from the whole text before it."""
    live = family("t5")
    small = reloaded(applied(DropLayers([0], decoder_keep=[0, 1, 3]), live, tmp_path), tmp_path)
    ids = batch(small).inputs["input_ids"][:1, :6]
    how = {"max_new_tokens": 8, "num_beams": beams, "do_sample": False}
    kept, whole = (small.model.generate(ids, use_cache=use, **how) for use in (True, False))
    assert torch.equal(kept, whole)
    assert len(kept[0].unique()) > 2


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_units_that_nothing_reads_go_and_cost_nothing(name, tmp_path):
    live = family(name)
    idle = torch.arange(0, 32, 2)
    with torch.no_grad():
        for ffn in feed_forwards(live.model).values():
            ffn.down.weight[:, idle] = 0
    small = applied(NarrowFFN(0.5), live, tmp_path)
    torch.testing.assert_close(logits(small), logits(live), rtol=0, atol=1e-5)


def test_a_bias_takes_over_what_constant_units_add(tmp_path):
    """Half of the units answer the same to everything: they matter to the output, and can go."""
    live = family("bert")
    with torch.no_grad():
        for ffn in feed_forwards(live.model).values():
            ffn.up[0].weight[::2] = 0
            ffn.up[0].bias[::2] = 2.0
    small = applied(NarrowFFN(0.5), live, tmp_path)
    torch.testing.assert_close(logits(small), logits(live), rtol=0, atol=1e-5)


def test_importance_is_what_leaving_a_unit_out_changes():
    """Mean squared change of the layer's output, over tokens only, by taking each unit out in turn."""
    live = family("llama")
    asked = batch(live)
    down = live.model.model.layers[1].mlp.down_proj
    seen = []
    hook = down.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    logits(live, asked)
    hook.remove()
    units = seen[0][asked.inputs["attention_mask"].bool()].double()
    moments = input_moments(live, [asked], {"down": down})["down"]
    found = importance(moments, down)
    for unit in (0, 7, 31):
        without = units.clone()
        without[:, unit] = 0
        change = (units - without) @ matrix_of(down).double().T
        assert float(found[unit]) == pytest.approx(float(change.square().sum(dim=1).mean()), rel=1e-9)


@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_heads_that_nothing_reads_go_and_the_rest_loads(name, tmp_path):
    live = family(name)
    with torch.no_grad():
        for layer in live.model.model.layers:
            layer.self_attn.o_proj.weight[:, 8:] = 0  # the second group: queries 2 and 3
    small = applied(DropHeads(1), live, tmp_path)
    config = small.model.config
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (2, 1, 4)
    torch.testing.assert_close(logits(reloaded(small, tmp_path)), logits(small), rtol=0, atol=1e-6)
    small.model.double(), live.model.double()  # so that rounding does not decide
    torch.testing.assert_close(logits(small), logits(live), rtol=0, atol=1e-5)


def test_padding_does_not_count(tmp_path):
    live = family("bert")
    down = {"down": next(iter(feed_forwards(live.model).values())).down}
    together = input_moments(live, [batch(live)], down)["down"]
    apart = input_moments(live, [batch(live, [text]) for text in ("four", "and one more")], down)["down"]
    both = input_moments(live, [batch(live, ["four", "and one more"])], down)["down"]
    torch.testing.assert_close(apart.mean, both.mean, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(apart.square, both.square, rtol=1e-5, atol=1e-7)
    assert not torch.allclose(together.mean, both.mean)


@pytest.mark.parametrize(
    ("name", "step", "message"),
    [
        ("bert", DropHeads(1), "the config of bert cannot express fewer heads"),
        ("t5", DropHeads(1), "the config of t5 cannot express fewer heads"),
        ("llama", DropHeads(3), "keep: there are 2 key-value heads, got 3"),
        ("bert", DropLayers(5), "keep: there are 4 layers, 0 … 3, got 5"),
        ("bert", DropLayers([1, 4]), "keep: there are 4 layers"),
        ("bert", DropLayers(2, decoder_keep=1), "decoder_keep: bert has no decoder"),
        ("bert", NarrowFFN(33), "keep: there are 32 units"),
    ],
)
def test_what_a_model_cannot_give_is_refused_in_one_line(name, step, message, tmp_path):
    with pytest.raises(UserError, match=message):
        applied(step, family(name), tmp_path)


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: DropLayers(0), "keep"),
        (lambda: DropLayers([2, 1]), "keep"),
        (lambda: DropLayers(2, decoder_keep=0), "decoder_keep"),
        (lambda: DropLayers(2, by="luck"), "by"),
        (lambda: NarrowFFN(0), "keep"),
        (lambda: DropHeads(0), "keep"),
    ],
)
def test_bad_arguments_are_refused(make, key):
    with pytest.raises(UserError, match=rf"^{key}: "):
        make()
