"""What a store says about itself: against values computed the long way in float64."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from distillkit.cache.dense import Dense
from distillkit.cache.quality import STUDENT, Quality
from distillkit.cache.sparse import Sampled, TopK, TopKSampled
from distillkit.signals import DenseLogits

ITEMS, CLASSES = 40, 30


def measured(codec, items: int = ITEMS, pieces: int = 3) -> tuple[dict, torch.Tensor, DenseLogits]:
    torch.manual_seed(0)
    logits = 2 * torch.randn(items, CLASSES) + torch.linspace(0, 3, CLASSES)  # some classes are likelier
    coded = codec.encode(logits, torch.arange(items))
    decoded = codec.decode(coded.pack([items]), CLASSES)
    quality = Quality(CLASSES, "classes")
    ends = torch.linspace(0, items, pieces + 1).long().tolist()
    for start, stop in pairwise(ends):
        quality.add(DenseLogits(logits[start:stop]), decoded[slice(start, stop)])
    return quality.report(), logits.double(), decoded


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_a_sparse_store_is_measured_at_its_temperature(temperature):
    found, logits, kept = measured(TopK(k=6, mass=1.0, temperature=temperature))
    p = (logits / temperature).softmax(dim=-1)
    told = torch.full_like(p, 0.0)
    for item in range(ITEMS):
        ids = kept.ids[item]
        left = kept.rest[item].double().exp()
        told[item] = left / (CLASSES - len(ids))
        told[item, ids] = kept.log_probs[item].double().exp()
    assert found["items"] == ITEMS
    assert found["kl"] == pytest.approx((p * (p / told).log()).sum(dim=-1).mean().item(), rel=1e-4)
    assert found["covered_mass"] == pytest.approx(p.topk(6).values.sum(dim=-1).mean().item(), rel=1e-5)

    # T² (q − p) / T, with one bucket for what is not listed: it is pulled at in proportion to the student's q
    q = (STUDENT * logits / temperature).softmax(dim=-1)
    bucket = torch.zeros_like(p)
    for item in range(ITEMS):
        others = torch.ones(CLASSES, dtype=torch.bool)
        others[kept.ids[item]] = False
        left = kept.rest[item].double().exp()
        bucket[item] = torch.where(others, q[item] / q[item][others].sum() * left, told[item])
    full, part = (temperature * (q - target) for target in (p, bucket))
    cosine = (full * part).sum() / (full.norm() * part.norm())
    assert found["gradient_cosine"] == pytest.approx(cosine.item(), rel=1e-5)
    whole, kept_whole = full.sum(dim=0), part.sum(dim=0)
    cosine = whole @ kept_whole / (whole.norm() * kept_whole.norm())
    assert found["summed_gradient_cosine"] == pytest.approx(cosine.item(), rel=1e-5)
    assert found["summed_gradient_length"] == pytest.approx((kept_whole.norm() / whole.norm()).item(), rel=1e-5)
    halves = (part - full).mean(dim=0)
    assert 0 < found["gradient_bias"] < 2 * halves.norm() / full.mean(dim=0).norm()


def test_a_store_of_whole_logits_is_the_teacher():
    found, *_ = measured(Dense())
    assert found["kl"] == pytest.approx(0, abs=1e-6)
    assert found["covered_mass"] == pytest.approx(1)
    assert found["gradient_cosine"] == pytest.approx(1)
    assert found["summed_gradient_cosine"] == pytest.approx(1)
    assert found["summed_gradient_length"] == pytest.approx(1)
    assert found["gradient_bias"] == pytest.approx(0, abs=1e-6)
    assert found["largest_error"] == 0


def test_draws_leave_no_bias_and_the_likeliest_classes_alone_leave_some():
    drawn, kept = (measured(codec, 4000)[0] for codec in (TopKSampled(k=3, draws=8), TopK(k=3)))
    assert kept["gradient_bias"] > 5 * drawn["gradient_bias"]
    assert drawn["gradient_bias"] < 0.02


def test_the_summed_gradient_shows_a_bias_that_the_cosine_by_item_hides():
    """Every item is about another class, and half of the others are always likelier: that a head alone cannot tell."""
    torch.manual_seed(0)
    items, classes = 2000, 400
    logits = 0.3 * torch.randn(items, classes)
    logits[:, : classes // 2] += 3
    logits[torch.arange(items), torch.randint(classes, (items,))] = 9.2
    found = {}
    for codec in (TopK(k=4), TopKSampled(k=4, draws=32)):
        quality = Quality(classes, "classes")
        kept = codec.decode(codec.encode(logits, torch.arange(items)).pack([items]), classes)
        quality.add(DenseLogits(logits), kept)
        found[codec.name] = quality.report()
    kept, drawn = found["top_k"], found["top_k_sampled"]
    assert kept["gradient_cosine"] > 0.9999 > drawn["gradient_cosine"]
    assert 1 - kept["summed_gradient_cosine"] > 100 * (1 - kept["gradient_cosine"])
    assert kept["summed_gradient_length"] > 1.1
    assert drawn["summed_gradient_length"] == pytest.approx(1, abs=0.01)


def test_draws_alone_list_nothing():
    found, *_ = measured(Sampled(draws=20))
    assert found["kl"] is None
    assert 0 < found["gradient_cosine"] < 1


def test_scores_and_labels_are_compared_as_they_are():
    quality = Quality(2, "scores")
    quality.add(DenseLogits(torch.tensor([[1.0, 2.0]])), DenseLogits(torch.tensor([[1.5, 2.0]])))
    assert quality.report() == {
        "items": 1,
        "kl": None,
        "covered_mass": None,
        "gradient_cosine": None,
        "summed_gradient_cosine": None,
        "summed_gradient_length": None,
        "gradient_bias": None,
        "largest_error": 0.5,
    }
