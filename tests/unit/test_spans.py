"""From logits to answers: what is decoded, when there is none, and how answers are judged."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from distillkit.data.encode import encode
from distillkit.data.files import FileDataset
from distillkit.errors import UserError
from distillkit.evaluation.evaluate import evaluate
from distillkit.metrics.reading import best_of
from distillkit.signals import ABSENT, Batch, DenseLogits, Signal
from distillkit.tasks.question_answering import QuestionAnswering
from tests.encoders import collate, encoder
from tests.questions import ANSWERS, CONTEXTS, GIVEN, QUESTIONS, ROWS, SMALL, TOKENIZERS
from tests.samples import question_rows
from tests.tiny import accelerator, write_jsonl


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request):
    return TOKENIZERS[request.param]


class Random:
    """A model with fixed random logits."""

    def __init__(self, seed: int, null: float = 0.0) -> None:
        self.seed, self.null = seed, null

    def __call__(self, batch: Batch) -> Signal:
        torch.manual_seed(self.seed)
        logits = torch.randn(len(batch.counted), 2, batch.counted.shape[1])
        for row, null in enumerate(batch.extras["null"]):
            logits[row, :, null] += self.null
        return Signal(DenseLogits(logits.masked_fill(~batch.counted.unsqueeze(1), ABSENT).flatten(0, 1)))


def by_hand(batch: Batch, logits: torch.Tensor, row: int, longest: int) -> tuple[dict[tuple[int, int], float], float]:
    """Every span of a row with its best score, and the lowest score of the null position."""
    found, nulls = {}, []
    start, end = logits.view(len(batch.counted), 2, -1).unbind(dim=1)
    for w, owner in enumerate(batch.extras["row"]):
        if owner != row:
            continue
        first, base = batch.extras["first"][w], batch.extras["base"][w]
        starts, ends = batch.extras["starts"][w], batch.extras["ends"][w]
        for s in range(len(starts)):
            for e in range(s, min(s + longest, len(starts))):
                score = float(start[w, first + s] + end[w, first + e])
                place = base + starts[s], base + ends[e]
                if place[1] > place[0]:
                    found[place] = max(score, found.get(place, score))
        null = batch.extras["null"][w]
        nulls.append(float(start[w, null] + end[w, null]))
    return found, min(nulls)


@pytest.mark.parametrize("longest", [1, 3, 30])
def test_decoding_finds_what_trying_everything_finds(longest, tokenizer):
    task = QuestionAnswering(**SMALL, max_answer=longest, n_best=4)
    batch = collate(task, tokenizer, **ROWS)
    for seed in range(5):
        model = Random(seed)
        answers = task.merge(task.answer(model, batch))
        logits = model(batch).logits.values
        assert answers["row"] == [0, 1, 2]
        for row, context in enumerate(CONTEXTS):
            spans, null = by_hand(batch, logits, row, longest)
            (start, end), score = max(spans.items(), key=lambda span: span[1])
            assert answers["prediction"][row] == context[start:end]
            assert answers["spans"][row][0] == (pytest.approx(score), start, end, context[start:end])
            assert answers["null"][row] == pytest.approx(null)
            best = sorted(spans.values(), reverse=True)[:4]
            assert [span[0] for span in answers["spans"][row]][:4] == pytest.approx(best)
            assert (answers["exact"][row], answers["f1"][row]) == best_of([GIVEN[row]], context[start:end])


def test_windows_of_a_row_may_be_spread_over_batches(tmp_path):
    lines = [{**row, "id": str(index)} for index, row in enumerate(question_rows(20))]
    rows = FileDataset(train=str(write_jsonl(tmp_path / "a.jsonl", lines)), cache=False).load()
    live = encoder(QuestionAnswering(**SMALL), TOKENIZERS["words"])
    data = encode(rows, "train", live.task, live.tokenizer, None)
    assert len(data) > len(lines)
    found = [evaluate(live, live.task, data, size, accelerator()) for size in (1, 7, 64)]
    assert all(len(outcome.answers["prediction"]) == len(lines) for outcome in found)
    for outcome in found[1:]:
        assert outcome.answers["prediction"] == found[0].answers["prediction"]
        assert outcome.metrics == pytest.approx(found[0].metrics, rel=1e-5)
    lean = evaluate(live, live.task, data, 7, accelerator(), keep_answers=False)
    assert lean.metrics == found[1].metrics
    alone = {name: values[3:5] for name, values in found[0].answers.items() if name in live.task.metric_columns}
    assert live.task.metrics(alone)["f1"] == pytest.approx(sum(found[0].answers["f1"][3:5]) / 2)


def test_the_threshold_decides_whether_there_is_an_answer():
    batch = collate(QuestionAnswering(**SMALL), TOKENIZERS["words"], **ROWS)
    for null in (-20.0, 0.0, 20.0):
        for threshold in (None, -3.0, 0.0, 3.0):
            task = QuestionAnswering(**SMALL, null_threshold=threshold)
            answers = task.merge(task.answer(Random(0, null), batch))
            for margin, text, spans in zip(answers["margin"], answers["prediction"], answers["spans"], strict=True):
                empty = threshold is not None and margin > threshold
                assert text == ("" if empty else spans[0][3])
            assert set(task.metric_names) == set(task.metrics(answers))


def test_answerable_and_unanswerable_questions_are_judged_apart():
    task = QuestionAnswering(**SMALL, null_threshold=0.0)
    rows = {**ROWS, "answers": [ANSWERS[0], {"text": [], "answer_start": []}, ANSWERS[2]]}
    batch = collate(task, TOKENIZERS["words"], **rows)
    never = task.metrics(task.merge(task.answer(Random(0, 50.0), batch)))
    assert never["no_answer_f1"] == never["no_answer_exact"] == 1.0
    assert never["has_answer_f1"] == 0.0
    assert never["f1"] == pytest.approx(1 / 3)
    answers = task.merge(task.answer(Random(0, -50.0), batch))
    assert all(answers["prediction"])
    always = task.metrics(answers)
    assert always["no_answer_exact"] == best_of([], answers["prediction"][1])[0]
    assert always["best_f1"] >= max(always["f1"], 1 / 3)


def test_a_perfect_model_is_perfect(tokenizer):
    task = QuestionAnswering(**SMALL)
    batch = collate(task, tokenizer, **ROWS)

    def right(batch: Batch) -> Signal:
        logits = functional.one_hot(batch.labels, batch.counted.shape[1]).float() * 30
        lost = [start == null for (start, _), null in zip(batch.labels.view(-1, 2), batch.extras["null"], strict=True)]
        logits[torch.tensor(lost).repeat_interleave(2)] *= 0.5
        mask = batch.counted.repeat_interleave(2, dim=0)
        return Signal(DenseLogits(logits.masked_fill(~mask, ABSENT)))

    answers = task.merge(task.answer(right, batch))
    assert answers["prediction"] == GIVEN
    assert task.metrics(answers) == {"f1": 1.0, "exact": 1.0, "loss": pytest.approx(0, abs=1e-3)}


def test_rows_without_answers_are_answered_but_not_judged():
    task = QuestionAnswering(**SMALL)
    columns = {"question": QUESTIONS, "context": CONTEXTS}
    answers = task.merge(task.answer(Random(0), collate(task, TOKENIZERS["words"], **columns)))
    assert all(answers["prediction"])
    with pytest.raises(UserError, match=r"dataset\.columns\.answers: no row has answers"):
        task.metrics(answers)
