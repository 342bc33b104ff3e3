"""The chunked pass over the vocabulary against the dense computation in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from distillkit.losses import chunks as memory
from distillkit.losses.base import LogitLoss
from distillkit.losses.divergences import ForwardKL
from distillkit.losses.task import CrossEntropy
from distillkit.losses.vocabulary import WeightedTerm, logit_terms, vocabulary_pass
from distillkit.signals import IGNORE, DenseLogits, HeadLogits, Logits, chunks
from tests.logit_losses import CASES, Case, every

ITEMS, WIDTH, VOCABULARY = 13, 8, 40


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


LABELS = torch.randint(VOCABULARY, (ITEMS,), generator=torch.Generator().manual_seed(3))
TAUGHT = torch.tensor([True] * 10 + [False] * 3)
EVERY = torch.ones(ITEMS, dtype=torch.bool)


SIZES = {
    "one chunk": (1 << 24, 1 << 17),
    "three chunks": (5 * VOCABULARY, 1 << 17),
    "chunks of blocks": (7 * VOCABULARY, 2 * VOCABULARY),
    "a chunk an item": (1, 1),
}


@pytest.fixture(params=SIZES.values(), ids=SIZES.keys())
def budget(request, monkeypatch) -> None:
    monkeypatch.setitem(memory.CHUNK, "cpu", request.param[0])
    monkeypatch.setattr(memory, "BLOCK", request.param[1] // min(torch.get_num_threads(), 8))


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


def full(terms: list[WeightedTerm], hidden: Tensor, weight: Tensor, teacher: Tensor) -> Tensor:
    """The scaled total by the definition, in float64."""
    logits = hidden @ weight.T
    return sum(term.scale * term.loss.per_item(logits, teacher, LABELS)[term.mask].sum() for term in terms)


def compare(terms: list[WeightedTerm], columns: int = VOCABULARY) -> None:
    """Hold the pass against the full computation, to 1e-5 of each gradient's norm."""
    tensors, teacher = [draw(ITEMS, WIDTH, seed=0), draw(VOCABULARY, WIDTH, seed=1)], 3 * draw(ITEMS, columns, seed=4)
    ours, theirs = [x.clone().requires_grad_() for x in tensors], [x.double().requires_grad_() for x in tensors]
    total, sums = vocabulary_pass(HeadLogits(*ours), DenseLogits(teacher), LABELS, terms)
    total.backward()
    expected = full(terms, *theirs, teacher.double())
    expected.backward()
    assert total.item() == pytest.approx(expected.item(), rel=1e-5)
    assert sum(term.scale * value for term, value in zip(terms, sums, strict=True)).item() == pytest.approx(
        total.item()
    )
    for mine, reference in zip(ours, theirs, strict=True):
        assert (mine.grad - reference.grad).norm() <= 1e-5 * reference.grad.norm()
    counted = torch.stack([term.mask for term in terms]).any(dim=0)
    assert (ours[0].grad[~counted] == 0).all()


@every
@pytest.mark.parametrize("columns", [VOCABULARY, VOCABULARY - 2, VOCABULARY + 2])
def test_every_loss_is_that_of_the_full_computation(budget, case, columns):
    compare([WeightedTerm(case.make(2.0), TAUGHT, torch.tensor(0.1))], columns)


@every
def test_every_pair_of_losses_is_that_of_the_full_computation(case, monkeypatch):
    """Each over items of its own."""
    monkeypatch.setitem(memory.CHUNK, "cpu", 5 * VOCABULARY)
    mask = torch.arange(ITEMS) % 3 > 0
    for other in [Case(lambda _: CrossEntropy(0.1), math.nan), *CASES.values()]:
        first = WeightedTerm(case.make(2.0), TAUGHT, torch.tensor(0.1))
        compare([first, WeightedTerm(other.make(1.0), mask, torch.tensor(0.05))], VOCABULARY - 2)


@every
def test_tied_weights_get_the_gradient_of_both_uses_from_every_loss(case):
    table, teacher = draw(VOCABULARY, WIDTH, seed=1), 3 * draw(ITEMS, VOCABULARY, seed=4)
    terms = [WeightedTerm(case.make(2.0), TAUGHT, torch.tensor(0.1))]
    ours, theirs = table.clone().requires_grad_(), table.double().requires_grad_()
    vocabulary_pass(HeadLogits(ours[LABELS].tanh(), ours), DenseLogits(teacher), LABELS, terms)[0].backward()
    full(terms, theirs[LABELS].tanh(), theirs, teacher.double()).backward()
    assert (ours.grad - theirs.grad).norm() <= 1e-5 * theirs.grad.norm()


@every
def test_identical_heads_agree_also_with_padded_vocabularies(case):
    hidden, weight = draw(ITEMS, WIDTH, seed=0), draw(VOCABULARY, WIDTH, seed=1)
    for columns in (VOCABULARY, VOCABULARY - 7):
        for flip in (False, True):
            heads = [HeadLogits(hidden.clone(), weight[:rows].clone()) for rows in (VOCABULARY, columns)]
            student, teacher = reversed(heads) if flip else heads
            student.hidden.requires_grad_()
            term = WeightedTerm(case.make(2.0), EVERY, torch.tensor(1 / ITEMS))
            loss, _ = vocabulary_pass(student, teacher, LABELS.clamp(max=columns - 1), [term])
            loss.backward()
            assert not case.zero or abs(loss.item()) <= 1e-6
            assert not case.flat or student.hidden.grad.abs().max() <= 1e-6


def both_kinds(hidden: Tensor, weight: Tensor) -> list[Logits]:
    return [HeadLogits(hidden, weight), DenseLogits(hidden @ weight.T)]


@every
@pytest.mark.parametrize("kind", [0, 1], ids=["head", "dense"])
@pytest.mark.parametrize("poison", [math.inf, -math.inf, math.nan])
def test_what_a_term_does_not_count_cannot_poison_it(case, kind, poison):
    """Neither another term's items nor those of no term at all."""
    hidden, weight = draw(ITEMS, WIDTH, seed=0).requires_grad_(), draw(VOCABULARY, WIDTH, seed=1).requires_grad_()
    teacher = 3 * draw(ITEMS, VOCABULARY, seed=4)
    teacher[10:] = poison
    labelled = torch.arange(ITEMS) < 12
    terms = [WeightedTerm(case.make(2.0), TAUGHT, torch.tensor(0.1))]
    terms += [WeightedTerm(CrossEntropy(), labelled, torch.tensor(0.1))]
    loss, sums = logit_terms(both_kinds(hidden, weight)[kind], DenseLogits(teacher), LABELS, terms)
    loss.backward()
    whole = full(terms, hidden.detach().double(), weight.detach().double(), teacher.double().nan_to_num(0, 0, 0))
    assert loss.item() == pytest.approx(whole.item(), rel=1e-5)
    assert sums.isfinite().all()
    assert weight.grad.isfinite().all()
    assert hidden.grad[:12].isfinite().all()
    assert (hidden.grad[12] == 0).all()


def test_items_that_nobody_counts_never_reach_a_head():
    hidden, weight = draw(ITEMS, WIDTH, seed=0), draw(VOCABULARY, WIDTH, seed=1).requires_grad_()
    hidden[10:] = math.nan
    hidden.requires_grad_()
    teacher = HeadLogits(hidden.detach().clone(), draw(VOCABULARY, WIDTH, seed=2))
    term = WeightedTerm(ForwardKL(), TAUGHT, torch.tensor(0.1))
    loss, _ = vocabulary_pass(HeadLogits(hidden, weight), teacher, LABELS, [term])
    loss.backward()
    assert loss.isfinite()
    assert weight.grad.isfinite().all()
    assert (hidden.grad[10:] == 0).all()


def test_a_teacher_is_not_multiplied_where_no_term_asks_it():
    hidden, weight = draw(ITEMS, WIDTH, seed=0), draw(VOCABULARY, WIDTH, seed=1)
    teacher = HeadLogits(hidden.clone(), draw(VOCABULARY, WIDTH, seed=2))
    labels = torch.where(TAUGHT, IGNORE, LABELS)
    terms = [WeightedTerm(CrossEntropy(), labels != IGNORE, torch.tensor(0.1))]
    terms += [WeightedTerm(ForwardKL(), TAUGHT, torch.tensor(0.1))]
    multiplied = []
    original = memory._Head.multiply
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory._Head, "multiply", lambda head, items: multiplied.append(head) or original(head, items))
        vocabulary_pass(HeadLogits(hidden, weight), teacher, labels, terms)
    assert len(multiplied) == 3  # the student twice


class Spread(LogitLoss):
    """A user's own loss."""

    def mask(self, batch):
        return batch.taught

    def per_item(self, student, teacher, labels):
        return (student - teacher).square().mean(dim=-1)


def test_a_loss_of_the_users_own_works():
    compare([WeightedTerm(Spread(), TAUGHT, torch.tensor(0.1)), WeightedTerm(ForwardKL(), EVERY, torch.tensor(0.2))])


def test_a_weight_that_a_schedule_has_at_zero_gives_no_gradient():
    hidden, weight = draw(ITEMS, WIDTH, seed=0).requires_grad_(), draw(VOCABULARY, WIDTH, seed=1).requires_grad_()
    term = WeightedTerm(CrossEntropy(), EVERY, torch.tensor(0.0))
    loss, sums = vocabulary_pass(HeadLogits(hidden, weight), None, LABELS, [term])
    loss.backward()
    assert loss.item() == 0
    assert sums.item() > 0
    assert (hidden.grad == 0).all()
    assert (weight.grad == 0).all()


def test_the_heads_gradient_is_handed_over_without_a_copy():
    hidden, weight = draw(ITEMS, WIDTH, seed=0), draw(VOCABULARY, WIDTH, seed=1).requires_grad_()
    made = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "_zeros", lambda like: made.append(torch.zeros_like(like)) or made[-1])
        loss, _ = vocabulary_pass(HeadLogits(hidden, weight), None, LABELS, terms()[:1])
    address = made.pop().data_ptr()
    loss.backward(retain_graph=True)
    assert weight.grad.data_ptr() == address
    with pytest.raises(RuntimeError, match="once"):
        loss.backward()


def test_without_gradients_none_are_made():
    hidden, weight = draw(ITEMS, WIDTH, seed=0).requires_grad_(), draw(VOCABULARY, WIDTH, seed=1).requires_grad_()
    teacher = DenseLogits(draw(ITEMS, VOCABULARY, seed=4))
    loss, sums = vocabulary_pass(HeadLogits(hidden, weight), teacher, LABELS, terms())
    with torch.no_grad():
        again, same = vocabulary_pass(HeadLogits(hidden, weight), teacher, LABELS, terms())
    assert not again.requires_grad
    torch.testing.assert_close(again, loss.detach())
    torch.testing.assert_close(same, sums)
