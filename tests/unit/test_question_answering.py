"""Answers in long contexts: windows, what counts as a position, decoding, and questions without an answer."""

from __future__ import annotations

import random

import pytest
import torch
from transformers import BertConfig

from distillkit.commands.compare import cut
from distillkit.commands.parts import check_fit
from distillkit.data.encode import encode
from distillkit.data.files import FileDataset
from distillkit.errors import UserError
from distillkit.losses.attention import AttentionKL
from distillkit.losses.decoupled import DecoupledKD
from distillkit.losses.divergences import (
    AdaptiveKL,
    ForwardKL,
    GeneralizedJSD,
    ReverseKL,
    SkewedForwardKL,
    SkewedReverseKL,
    SymmetricKL,
    TotalVariation,
)
from distillkit.losses.hidden import HiddenMSE
from distillkit.losses.logits import Correlation, LogitMSE, RankingHinge, RankingLogistic
from distillkit.losses.objective import Objective
from distillkit.losses.task import CrossEntropy
from distillkit.models.anatomy import shape_of
from distillkit.models.teachers import FrozenModel
from distillkit.signals import ABSENT, IGNORE
from distillkit.tasks.question_answering import QuestionAnswering
from tests.encoders import collate, encoder, padded, rows_of, value
from tests.questions import ANSWERS, CONTEXTS, GIVEN, QUESTIONS, ROWS, SMALL, TOKENIZERS
from tests.tiny import write_jsonl


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request):
    return TOKENIZERS[request.param]


def windows(tokenizer, rows=ROWS, **settings) -> list[dict]:
    return rows_of(QuestionAnswering(**{**SMALL, **settings}).encode(rows, tokenizer, None))


@pytest.mark.parametrize("stride", [0, 1, 6, 15])
def test_windows_hold_every_token_of_the_context_and_share_the_stride(stride, tokenizer):
    for row, context in enumerate(CONTEXTS):
        whole = tokenizer(context, add_special_tokens=False)["input_ids"]
        parts = [w for w in windows(tokenizer, stride=stride) if w["row"] == row]
        pieces = [w["input_ids"][w["first"] : w["first"] + len(w["starts"])] for w in parts]
        assert [*pieces[0], *(token for piece in pieces[1:] for token in piece[stride:])] == whole
        assert all(len(w["input_ids"]) <= 32 for w in parts)
        assert all(w["input_ids"][: w["first"]] == parts[0]["input_ids"][: parts[0]["first"]] for w in parts)
        assert len(pieces) == 1 or row != 1


def test_the_targets_spell_the_answer_where_it_is_whole_and_the_null_position_elsewhere(tokenizer):
    seen = [0] * 3
    for window in windows(tokenizer):
        row, (start, end) = window["row"], window["span"]
        place = ANSWERS[row]["answer_start"][0] - window["base"]
        inside = place >= 0 and place + len(GIVEN[row]) <= len(window["text"])
        if not inside:
            assert start == end == window["null"]
            continue
        seen[row] += 1
        text = window["text"][window["starts"][start - window["first"]] : window["ends"][end - window["first"]]]
        assert text == GIVEN[row]
        base, context = window["base"], CONTEXTS[row]
        assert context[base : base + len(window["text"])] == window["text"]
    assert min(seen) >= 1


def test_an_answer_that_is_cut_by_a_window_is_not_in_it():
    rows = {"question": ["who"], "context": [CONTEXTS[0]], "answers": [{"text": [CONTEXTS[0]], "answer_start": [0]}]}
    assert all(w["span"] == [w["null"]] * 2 for w in windows(TOKENIZERS["words"], rows))


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ({"text": ["dog", "cat"], "answer_start": [4, 5]}, "the answer 'cat' is not in its context at 5"),
        ({"text": ["bird"], "answer_start": [4]}, "the answer 'bird' is not in its context at 4"),
        ({"text": ["dog"], "answer_start": [-50]}, "the answer 'dog' is not in its context at -50"),
        ({"text": [""], "answer_start": [4]}, "an answer is empty"),
        (
            {"text": [], "answer_start": []},
            "there is no answer; unanswerable questions need task.null_threshold, such as 0",
        ),
    ],
)
def test_rows_whose_answers_do_not_fit_are_bad(answers, reason):
    rows = {**ROWS, "answers": [ANSWERS[0], None, answers]}
    columns = QuestionAnswering(**SMALL).encode(rows, TOKENIZERS["words"], None)
    ((row, found),) = columns["bad"]
    assert row == 2
    assert found.startswith(reason)


def test_unanswerable_questions_teach_the_null_position():
    rows = {**ROWS, "answers": [{"text": [], "answer_start": []}, None, ANSWERS[2]]}
    batch = collate(QuestionAnswering(**SMALL, null_threshold=0), TOKENIZERS["words"], **rows)
    owners = batch.extras["row"]
    labels = batch.labels.view(-1, 2)
    for owner, pair, null in zip(owners, labels.tolist(), batch.extras["null"], strict=True):
        assert pair == {0: [null, null], 1: [IGNORE, IGNORE]}.get(owner, pair)
    assert batch.taught.all()


def test_long_questions_are_cut_and_counted(tokenizer):
    columns = QuestionAnswering(**SMALL).encode({**ROWS, "question": ["who " * 30, *QUESTIONS[1:]]}, tokenizer, None)
    assert {row for row, cut in zip(columns["row"], columns["truncated"], strict=True) if cut} == {0}
    longest = max(first for first, row in zip(columns["first"], columns["row"], strict=True) if row == 0)
    assert longest <= 8 + 2
    assert all(len(ids) <= 32 for ids in columns["input_ids"])


def test_items_are_start_and_end_over_the_context_and_the_null_position(tokenizer):
    live = encoder(QuestionAnswering(**SMALL), tokenizer)
    batch = collate(live.task, tokenizer, **ROWS)
    with torch.no_grad():
        logits = live(batch).logits.values
        own = live.model(**batch.inputs)
    count = len(batch.counted)
    assert logits.shape == (2 * count, batch.counted.shape[1])
    for items, output in ((logits[0::2], own.start_logits), (logits[1::2], own.end_logits)):
        torch.testing.assert_close(items[batch.counted], output[batch.counted])
        assert (items[~batch.counted] == ABSENT).all()
    sizes = [len(starts) + 1 for starts in batch.extras["starts"]]
    assert batch.counted.sum(dim=1).tolist() == sizes
    cls = tokenizer.cls_token_id
    nulls = batch.inputs["input_ids"].gather(1, torch.tensor(batch.extras["null"]).unsqueeze(1))
    assert cls is None or (nulls == cls).all()


LOSSES = {
    "hard": CrossEntropy,
    "smoothed": lambda: CrossEntropy(0.1),
    "forward": lambda: ForwardKL(2.0),
    "reverse": ReverseKL,
    "symmetric": SymmetricKL,
    "jsd": GeneralizedJSD,
    "skewed": SkewedForwardKL,
    "skewed reverse": SkewedReverseKL,
    "adaptive": AdaptiveKL,
    "variation": TotalVariation,
    "decoupled": DecoupledKD,
    "mse": LogitMSE,
    "centred mse": lambda: LogitMSE(centred=True),
    "correlation": Correlation,
    "ranking": lambda: RankingLogistic(k=64),
    "ranking hinge": lambda: RankingHinge(k=64),
    "hidden": HiddenMSE,
    "attention": AttentionKL,
}


@pytest.mark.parametrize("name", LOSSES)
def test_padding_changes_neither_loss_nor_gradient(name):
    task, tokenizer = QuestionAnswering(**SMALL), TOKENIZERS["words"]
    batch = collate(task, tokenizer, **ROWS)
    student, teacher = encoder(task, tokenizer), FrozenModel(encoder(task, tokenizer, layers=4, seed=1))
    objective = Objective({"one": {"weight": 1.0, "loss": LOSSES[name]()}})
    objective.bind(shape_of(student.model.config), shape_of(teacher.live.model.config))
    teacher.wanted = objective.wanted_of_teacher
    check_fit(objective, task)
    found = []
    for one in (batch, padded(batch, 64)):
        student.zero_grad()
        counts = objective.counts(one)
        loss = objective(student(one, objective.wanted_of_student), teacher(one), one, counts)[0]
        loss.backward()
        found.append((loss.item(), counts.tolist(), student.model.bert.embeddings.word_embeddings.weight.grad.clone()))
    (narrow, counts, gradient), (wide, wide_counts, wide_gradient) = found
    assert narrow > 0
    assert counts == wide_counts
    assert wide == pytest.approx(narrow, abs=1e-6)
    assert gradient.abs().max() > 0
    torch.testing.assert_close(wide_gradient, gradient, rtol=1e-4, atol=1e-6)
    assert value(objective, student, teacher, batch) == pytest.approx(narrow, rel=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"stride": 16},
        {"stride": -1},
        {"max_question": 0},
        {"max_answer": 0},
        {"n_best": 0},
        {"max_length": 12},
    ],
)
def test_settings_that_cannot_work_are_refused(settings):
    with pytest.raises(UserError, match=r"task\."):
        QuestionAnswering(**{**SMALL, **settings})


def test_windows_of_any_valid_setting_can_be_made():
    source = random.Random(0)
    for _ in range(40):
        question, length = source.randint(1, 30), source.randint(12, 60)
        if length - question - 8 < 1:
            continue
        stride = source.randrange(length - question - 8)
        settings = {"max_length": length, "stride": stride, "max_question": question}
        for tokenizer in TOKENIZERS.values():
            rows = {**ROWS, "question": ["who is it then and why not there " * 9] * 3}
            assert max(len(w["input_ids"]) for w in windows(tokenizer, rows, **settings)) <= length


def test_a_model_gets_two_outputs():
    config = BertConfig(num_labels=5)
    with pytest.raises(UserError, match="the model has 5 outputs, not start and end"):
        QuestionAnswering().prepare(config, None, trained=True, key="teacher.path")
    QuestionAnswering().prepare(config, None, trained=False, key="student.path")
    assert config.num_labels == 2


def test_a_limit_of_an_evaluation_counts_questions(tmp_path):
    lines = [dict(zip(ROWS, values, strict=True)) for values in zip(*ROWS.values(), strict=True)]
    rows = FileDataset(test=str(write_jsonl(tmp_path / "test.jsonl", lines))).load()
    whole = encode(rows, "test", QuestionAnswering(**SMALL), TOKENIZERS["bytes"], None)
    assert len(whole) > len(lines)
    for limit in (1, 2, 3, 4, None):
        some = cut(whole, limit)
        kept = whole.origins < (limit or len(lines))
        assert some.origins.tolist() == whole.origins[kept].tolist()
        assert some.lengths.tolist() == whole.lengths[kept].tolist()
