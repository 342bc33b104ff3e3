"""The chunked pass over the vocabulary against the dense computation in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from distillkit.losses import vocabulary
from distillkit.losses.divergences import ForwardKL
from distillkit.losses.task import CrossEntropy
from distillkit.losses.vocabulary import WeightedTerm, vocabulary_pass
from distillkit.signals import DenseLogits, HeadLogits, chunks

ITEMS, WIDTH, VOCABULARY = 13, 8, 40


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


LABELS = torch.randint(VOCABULARY, (ITEMS,), generator=torch.Generator().manual_seed(3))
TAUGHT = torch.tensor([True] * 10 + [False] * 3)
EVERY = torch.ones(ITEMS, dtype=torch.bool)


@pytest.fixture(params=[1 << 24, 5 * VOCABULARY, 1], ids=["one chunk", "three chunks", "a chunk an item"])
def budget(request, monkeypatch) -> int:
    monkeypatch.setattr(vocabulary, "chunks", lambda items, classes: chunks(items, classes, request.param))
    return request.param


def terms() -> list[WeightedTerm]:
    return [
        WeightedTerm(CrossEntropy(), EVERY, torch.tensor(0.3 / 13)),
        WeightedTerm(ForwardKL(2.0), TAUGHT, torch.tensor(0.7 / 10)),
    ]


def dense(hidden: Tensor, weight: Tensor, bias: Tensor | None, scale: float, cap: float | None, teacher: Tensor):
    """The same by the textbook, in float64: loss and the sums of both terms."""
    logits = hidden @ weight.T if bias is None else hidden @ weight.T + bias
    logits = logits * scale
    logits = logits if cap is None else cap * (logits / cap).tanh()
    hard = functional.cross_entropy(logits, LABELS, reduction="sum")
    shared = min(VOCABULARY, teacher.shape[1])
    log_q, log_p = ((x[:, :shared].double() / 2).log_softmax(-1) for x in (logits, teacher))
    soft = 4 * (log_p.exp() * (log_p - log_q)).sum(-1)[TAUGHT].sum()
    return 0.3 / 13 * hard + 0.7 / 10 * soft, hard, soft


@pytest.mark.parametrize(
    ("bias", "scale", "cap"), [(False, 1.0, None), (True, 1.0, None), (True, 0.25, None), (True, 2.0, 5.0)]
)
def test_loss_sums_and_gradients_are_those_of_the_dense_computation(budget, bias, scale, cap):
    tensors = [draw(ITEMS, WIDTH, seed=0), draw(VOCABULARY, WIDTH, seed=1)]
    tensors += [draw(VOCABULARY, seed=2)] if bias else []
    ours = [tensor.clone().requires_grad_() for tensor in tensors]
    theirs = [tensor.double().requires_grad_() for tensor in tensors]
    taught = 3 * draw(ITEMS, VOCABULARY, seed=4)
    head = HeadLogits(*ours, *([] if bias else [None]), scale=scale, soft_cap=cap)
    loss, sums = vocabulary_pass(head, DenseLogits(taught), LABELS, terms())
    expected, hard, soft = dense(*theirs, *([] if bias else [None]), scale, cap, taught)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    torch.testing.assert_close(sums.double(), torch.stack([hard, soft]).detach(), rtol=1e-5, atol=0)
    (3 * loss).backward()
    (3 * expected).backward()
    for mine, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad.double(), reference.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("columns", [VOCABULARY - 7, VOCABULARY + 7])
def test_a_teachers_head_is_multiplied_chunk_by_chunk_too(budget, columns):
    hidden, weight = draw(ITEMS, WIDTH, seed=0).requires_grad_(), draw(VOCABULARY, WIDTH, seed=1).requires_grad_()
    teacher = HeadLogits(draw(ITEMS, 5, seed=5), draw(columns, 5, seed=6), soft_cap=4.0)
    taught = 4 * (teacher.hidden @ teacher.weight.T / 4).tanh()
    loss, _ = vocabulary_pass(HeadLogits(hidden, weight), teacher, LABELS, terms())
    expected, _, _ = dense(hidden.double(), weight.double(), None, 1.0, None, taught)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    loss.backward()
    assert weight.grad is not None


def test_tied_weights_get_the_gradient_of_both_uses(budget):
    table = draw(VOCABULARY, WIDTH, seed=1)
    taught = DenseLogits(draw(ITEMS, VOCABULARY, seed=4))
    ours, theirs = table.clone().requires_grad_(), table.double().requires_grad_()
    vocabulary_pass(HeadLogits(ours[LABELS].tanh(), ours), taught, LABELS, terms())[0].backward()
    dense(theirs[LABELS].tanh(), theirs, None, 1.0, None, taught.values)[0].backward()
    torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-4, atol=1e-6)


def test_items_that_no_term_counts_get_exactly_no_gradient(budget):
    hidden = draw(ITEMS, WIDTH, seed=0).requires_grad_()
    term = WeightedTerm(ForwardKL(), TAUGHT, torch.tensor(0.1))
    teacher = DenseLogits(draw(ITEMS, VOCABULARY, seed=4))
    vocabulary_pass(HeadLogits(hidden, draw(VOCABULARY, WIDTH, seed=1)), teacher, LABELS, [term])[0].backward()
    assert (hidden.grad[10:] == 0).all()
    assert (hidden.grad[:10] != 0).any(dim=1).all()


def test_only_the_gradients_that_are_asked_for_are_made():
    hidden, weight = draw(ITEMS, WIDTH, seed=0), draw(VOCABULARY, WIDTH, seed=1)
    teacher = DenseLogits(draw(ITEMS, VOCABULARY, seed=4))
    loss, sums = vocabulary_pass(HeadLogits(hidden, weight), teacher, LABELS, terms())
    assert not loss.requires_grad
    assert not sums.requires_grad
    loss, _ = vocabulary_pass(HeadLogits(hidden.requires_grad_(), weight), teacher, LABELS, terms())
    loss.backward()
    assert hidden.grad is not None
    assert weight.grad is None


def test_no_items_cost_nothing():
    hidden, weight = torch.zeros(0, WIDTH, requires_grad=True), draw(VOCABULARY, WIDTH, seed=1).requires_grad_()
    none = torch.zeros(0, dtype=torch.int64)
    term = WeightedTerm(CrossEntropy(), none.bool(), torch.tensor(1.0))
    loss, _ = vocabulary_pass(HeadLogits(hidden, weight), None, none, [term])
    loss.backward()
    assert loss.item() == 0
    assert (weight.grad == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_the_direction_of_the_gradient(budget, dtype):
    """A weight of 1 / (a million items) must not make fp16 gradients vanish before a loss scale can save them."""
    tiny = [
        WeightedTerm(CrossEntropy(), EVERY, torch.tensor(1e-6)),
        WeightedTerm(ForwardKL(), EVERY, torch.tensor(2e-6)),
    ]
    teacher = DenseLogits(draw(ITEMS, VOCABULARY, seed=4))
    grads = []
    for half in (False, True):
        hidden, weight = draw(ITEMS, WIDTH, seed=0).requires_grad_(), draw(VOCABULARY, WIDTH, seed=1).requires_grad_()
        with torch.autocast("cpu", dtype=dtype, enabled=half):
            loss, _ = vocabulary_pass(HeadLogits(hidden, weight), teacher, LABELS, tiny)
        (loss * 65536).backward()
        grads.append((hidden.grad, weight.grad))
        assert hidden.grad.dtype == weight.grad.dtype == torch.float32
    for exact, rough in zip(*grads, strict=True):
        assert functional.cosine_similarity(exact.flatten(), rough.flatten(), dim=0) > 0.999
        assert rough.norm() / exact.norm() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(("items", "classes"), [(0, 5), (1, 1 << 30), (7, 3), (1000, 64)])
def test_chunks_cover_every_item_once_within_the_budget(items, classes):
    pieces = list(chunks(items, classes, budget=640))
    assert [index for start, stop in pieces for index in range(start, stop)] == list(range(items))
    assert all(stop - start == 1 or (stop - start) * classes <= 640 for start, stop in pieces)
