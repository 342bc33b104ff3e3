"""Scores, masks, patterns and gradual pruning: what goes, when, and that it stays gone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from distillkit.compression.gradual import GradualPrune
from distillkit.compression.masks import hold, pattern_masks, revived, share_masks, smallest_masks
from distillkit.compression.prune import MagnitudePrune, WandaPrune, prunable
from distillkit.compression.variant import Variant
from distillkit.errors import UserError
from distillkit.models.live import LiveModel
from tests.compressing import batch, context, family


def test_signed_scores_are_ordered_as_numbers():
    values = torch.tensor([[3.0, -1.0, -0.0, 0.0, -5.0, 1e-30, -1e-30, torch.inf, -torch.inf]])
    for count in range(1, 9):
        mask = smallest_masks({"a": values}, count / 9)["a"]
        assert int((~mask).sum()) == count
        assert values[~mask].max() <= values[mask].min()


def test_every_row_loses_the_same_share():
    scores = torch.rand(6, 40)
    mask = share_masks({"a": scores}, 0.3, "row")["a"]
    assert (~mask).sum(dim=1).tolist() == [12] * 6
    for row, kept in zip(scores, mask, strict=True):
        assert row[~kept].max() < row[kept].min()


@pytest.mark.parametrize(("pattern", "kept", "group"), [("2:4", 2, 4), ("1:4", 1, 4), ("4:8", 4, 8)])
def test_patterns_keep_the_largest_of_every_group(pattern, kept, group):
    scores = torch.rand(5, 16)
    mask = pattern_masks({"a": scores}, pattern)["a"]
    groups, chosen = scores.view(-1, group), mask.view(-1, group)
    assert (chosen.sum(dim=1) == kept).all()
    assert torch.equal(chosen, groups >= groups.topk(kept).values[:, -1:])
    with pytest.raises(UserError, match="a has 6 inputs"):
        pattern_masks({"a": torch.rand(2, 6)}, pattern)


@pytest.mark.parametrize("name", ["bert", "gpt2", "t5"])
def test_patterns_of_whole_models(name, tmp_path):
    """Groups run along the inputs, also where weights are kept transposed; both stacks of an encoder-decoder count."""
    live = family(name)
    variant = MagnitudePrune(pattern="2:4")(Variant(live), context(live, tmp_path))
    assert variant.notes["sparsity"] == pytest.approx(0.5)
    for path, module in prunable(live.model, []).items():
        weight = module.weight.detach()
        rows = weight if isinstance(module, nn.Linear) else weight.T
        assert ((rows.reshape(-1, 4) != 0).sum(dim=1) <= 2).all(), path
    assert name != "t5" or any("decoder" in path for path in variant.masks)


def test_wanda_prunes_what_moves_the_outputs_least(tmp_path):
    """By the paper's recipe: per output, |w| times the norm of the input over tokens, in float64."""
    live = family("bert")
    module = live.model.bert.encoder.layer[1].intermediate.dense
    asked, seen = batch(live), []
    hook = module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        live(asked)
    hook.remove()
    norms = seen[0].detach()[asked.inputs["attention_mask"].bool()].double().norm(dim=0)
    scores = module.weight.detach().double().abs() * norms
    expected = scores >= scores.sort(dim=1).values[:, 8:9]
    variant = WandaPrune(sparsity=0.5)(Variant(live), context(live, tmp_path))
    assert torch.equal(variant.masks["bert.encoder.layer.1.intermediate.dense.weight"], expected)
    assert variant.notes["sparsity"] == pytest.approx(0.5)


def test_wanda_changes_less_than_magnitude_where_inputs_differ_in_size(tmp_path):
    changes = {}
    for kind in (WandaPrune, MagnitudePrune):
        live = family("llama")
        with torch.no_grad():
            for layer in live.model.model.layers:
                for norm in (layer.input_layernorm, layer.post_attention_layernorm):
                    norm.weight.copy_(torch.logspace(-2, 1, 16)[torch.randperm(16)])
        asked = batch(live)
        before = live.model(**asked.inputs).logits.detach()
        kind(sparsity=0.5, scope="row")(Variant(live), context(live, tmp_path))
        changes[kind] = float((live.model(**asked.inputs).logits.detach() - before).square().mean())
    assert changes[WandaPrune] < 0.5 * changes[MagnitudePrune]


class Trainer:
    """Trains by AdamW with decay, which revives what is not held, and notes the sparsity after every step."""

    def __init__(self, steps: int = 20) -> None:
        self.steps = steps
        self.zeros: list[float] = []
        self.settings = None

    def __call__(self, live: LiveModel, masks, settings, watch=None) -> None:
        self.settings = settings
        optimiser = torch.optim.AdamW(live.model.parameters(), lr=0.05, weight_decay=0.1)
        asked, modules = batch(live), prunable(live.model, [])
        for step in range(self.steps):
            live(asked).logits.rows(0, 4).logsumexp(dim=-1).sum().backward()
            watch.before_step(step, self.steps)
            optimiser.step()
            optimiser.zero_grad()
            hold(live.model, masks)
            watch.after_step(step, self.steps)
            weights = torch.cat([module.weight.flatten() for module in modules.values()])
            self.zeros.append(float((weights == 0).float().mean()))


@pytest.mark.parametrize("by", ["magnitude", "movement"])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_sparsity_follows_the_cubic_curve_and_nothing_comes_back(by, scope, tmp_path):
    live, trainer = family("bert"), Trainer()
    step = GradualPrune(0.6, by=by, scope=scope, begin=0.2, end=0.8, every=1)
    variant = step(Variant(live), context(live, tmp_path, trainer))
    for done, found in enumerate(trainer.zeros, start=1):
        through = min(max((done / 20 - 0.2) / 0.6, 0), 1)
        assert found == pytest.approx(0.6 * (1 - (1 - through) ** 3), abs=2e-3)
    assert trainer.zeros == sorted(trainer.zeros)
    assert variant.notes["sparsity"] == pytest.approx(0.6, abs=1e-3)
    assert revived(live.model, variant.masks) == 0
    assert not trainer.settings.keep_best


def test_movement_prunes_what_training_moves_to_zero(tmp_path):
    """Weights whose size falls go before those whose size grows, whichever is larger."""
    live = family("bert")
    name, module = next(iter(prunable(live.model, []).items()))
    with torch.no_grad():
        module.weight.fill_(1.0)
        module.weight[:, :8] = 5.0  # larger, and about to shrink

    def train(model, masks, settings, watch) -> None:
        for step in range(4):
            for other in prunable(model.model, []).values():
                other.weight.grad = torch.zeros_like(other.weight)
            module.weight.grad = torch.full_like(module.weight, -1.0)  # against the gradient: up
            module.weight.grad[:, :8] = 1.0
            watch.before_step(step, 4)
            watch.after_step(step, 4)

    variant = GradualPrune(0.5, by="movement", end=1.0, every=4)(Variant(live), context(live, tmp_path, train))
    assert not variant.masks[name][:, :8].any()
    assert variant.masks[name][:, 8:].all()


def test_earlier_zeros_stay(tmp_path):
    live = family("bert")
    first = MagnitudePrune(sparsity=0.3)(Variant(live), context(live, tmp_path))
    second = GradualPrune(0.5)(first, context(live, tmp_path, Trainer()))
    assert second.notes["sparsity"] == pytest.approx(0.5, abs=1e-3)
    assert all(not (mask & ~first.masks[name]).any() for name, mask in second.masks.items())


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        ({"sparsity": 1.0}, "sparsity"),
        ({"sparsity": 0.5, "by": "luck"}, "by"),
        ({"sparsity": 0.5, "scope": "column"}, "scope"),
        ({"sparsity": 0.5, "begin": 0.8, "end": 0.7}, "begin"),
        ({"sparsity": 0.5, "every": 0}, "every"),
        ({"sparsity": 0.5, "train": {"max_stps": 3}}, "train.max_stps"),
    ],
)
def test_bad_arguments_are_refused(arguments, key):
    with pytest.raises(UserError, match=rf"^{key}: "):
        GradualPrune(**arguments)


def test_wanda_needs_one_target():
    with pytest.raises(UserError, match="either sparsity or pattern"):
        WandaPrune()
