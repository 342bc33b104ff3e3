"""Which outputs count, and that padding changes nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional
from transformers import GPT2Config, GPT2ForSequenceClassification, LlamaConfig, LlamaForSequenceClassification

from distillkit.errors import UserError
from distillkit.losses.divergences import ForwardKL
from distillkit.losses.objective import Objective
from distillkit.losses.task import CrossEntropy
from distillkit.models.live import LiveModel
from distillkit.models.teachers import FrozenModel, recorded_signal
from distillkit.signals import IGNORE, Batch, HeadLogits
from distillkit.tasks.causal_lm import CausalLM
from distillkit.tasks.sequence_classification import SequenceClassification
from tests.tiny import LABELS, classifier, language_model, tokenizer

TOKENIZER = tokenizer()
END = TOKENIZER.eos_token_id


def rows_of(columns: dict[str, list]) -> list[dict]:
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def collate(task, **columns) -> Batch:
    ids = None if not task.has_classes else {name: index for index, name in enumerate(LABELS)}
    return task.collate(rows_of(task.encode(columns, TOKENIZER, ids)), TOKENIZER)


def padded(batch: Batch, columns: int, token: int) -> Batch:
    """Add padding on the right of every row."""
    pad = {"input_ids": token, "attention_mask": 0, "token_type_ids": 0}
    inputs = {name: functional.pad(tensor, (0, columns), value=pad[name]) for name, tensor in batch.inputs.items()}
    counted = functional.pad(batch.counted, (0, columns)) if batch.counted.ndim == 2 else batch.counted
    return replace(batch, inputs=inputs, counted=counted)


def distillation() -> Objective:
    return Objective({"hard": {"weight": 0.5, "loss": CrossEntropy()}, "kd": {"weight": 0.5, "loss": ForwardKL(2.0)}})


TEXTS = ["a fine and happy day", "great", "what a pain to see this again and again"]


@pytest.mark.parametrize("kind", ["classifier", "language model"])
def test_padding_changes_no_loss(kind):
    make = classifier if kind == "classifier" else language_model
    student, teacher = make(1, seed=0).eval(), FrozenModel(make(2, seed=1))
    columns = {"text": TEXTS, "label": ["good", None, "bad"]} if kind == "classifier" else {"text": TEXTS}
    batch = collate(student.task, **columns)
    objective = distillation()
    counts = objective.counts(batch)
    with torch.no_grad():
        for extra in (1, 64):
            wide = padded(batch, extra, TOKENIZER.pad_token_id)
            assert objective.counts(wide).tolist() == counts.tolist()
            loss, wider = (objective(student(b), teacher(b), b, counts)[0].item() for b in (batch, wide))
            assert wider == pytest.approx(loss, abs=1e-6)


@pytest.mark.parametrize("own_padding", [None, 2])
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_a_decoder_that_classifies_reads_the_last_token_whatever_its_config_calls_padding(architecture, own_padding):
    torch.manual_seed(0)
    if architecture == "gpt2":
        config = GPT2Config(vocab_size=320, n_embd=16, n_layer=1, n_head=2, pad_token_id=own_padding, num_labels=2)
        model = GPT2ForSequenceClassification(config)
    else:
        config = LlamaConfig(
            vocab_size=320, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
        )
        config.pad_token_id, config.num_labels = own_padding, 2
        model = LlamaForSequenceClassification(config)
    live = LiveModel(model, tokenizer(), SequenceClassification()).eval()
    together = live.task.collate(rows_of(live.task.encode({"text": TEXTS}, live.tokenizer, None)), live.tokenizer)
    with torch.no_grad():
        values = live(together).logits.values
        for index, text in enumerate(TEXTS):
            ids = torch.tensor([live.tokenizer(text)["input_ids"]])
            alone = live.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
            torch.testing.assert_close(values[index], alone, rtol=1e-5, atol=1e-6)


def test_of_a_completion_exactly_its_tokens_and_the_end_count():
    prompts, completions = ["what a day", "so"], [" fine and happy", " very good"]
    heads, tails = (TOKENIZER(texts)["input_ids"] for texts in (prompts, completions))
    batch = collate(CausalLM(max_length=64), prompt=prompts, completion=completions)
    ids = batch.inputs["input_ids"]
    for row, (head, tail) in enumerate(zip(heads, tails, strict=True)):
        assert ids[row, : len(head) + len(tail) + 1].tolist() == [*head, *tail, END]
        positions = batch.counted[row].nonzero().flatten().tolist()
        first, last = len(head) - 1, len(head) + len(tail) - 1  # the outputs that predict tail[0] and the end
        assert positions == list(range(first, last + 1))
        assert ids[row, [position + 1 for position in positions]].tolist() == [*tail, END]
    assert batch.labels.tolist() == [*tails[0], END, *tails[1], END]
    assert batch.taught.all()
    assert len(batch.taught) == len(batch.labels)


def test_long_completions_are_cut_and_prompts_without_room_left_out():
    task = CausalLM(max_length=6)
    encoded = task.encode(
        {"prompt": ["a", "what a joy to see this"], "completion": ["terrible " * 9, "x"]}, TOKENIZER, None
    )
    assert [len(ids) for ids in encoded["input_ids"]] == [6]
    assert END not in encoded["input_ids"][0]


def test_of_a_text_every_token_but_the_first_counts():
    batch = collate(CausalLM(max_length=64), text=["great work"])
    ids = [*TOKENIZER("great work")["input_ids"], END]
    assert batch.inputs["input_ids"].tolist() == [ids]
    assert batch.labels.tolist() == ids[1:]
    assert batch.counted.tolist() == [[True] * (len(ids) - 1) + [False]]


def test_a_text_that_was_cut_off_does_not_teach_an_end():
    encoded = CausalLM().encode({"text": TEXTS[:1] * 2, "finished": [True, False]}, TOKENIZER, None)
    assert [ids[-1] == END for ids in encoded["input_ids"]] == [True, False]


def test_a_long_text_is_cut_into_consecutive_pieces():
    text = " ".join(TEXTS)
    encoded = CausalLM(max_length=5, min_length=2).encode({"text": [text]}, TOKENIZER, None)
    whole = [*TOKENIZER(text)["input_ids"], END]
    pieces = [whole[start : start + 5] for start in range(0, len(whole), 5)]
    assert encoded["input_ids"] == [piece for piece in pieces if len(piece) >= 2]


def test_the_items_of_a_language_model_are_its_own_logits():
    live = language_model().eval()
    batch = collate(live.task, text=TEXTS)
    with torch.no_grad():
        signal = live(batch)
        logits = live.model(**batch.inputs).logits[batch.counted]
    assert isinstance(signal.logits, HeadLogits)
    torch.testing.assert_close(signal.logits.rows(0, len(signal.logits)), logits, rtol=1e-5, atol=1e-6)
    assert len(signal.logits) == len(batch.labels)


def test_scores_of_a_language_model_are_those_of_float64():
    live = language_model().eval()
    batch = collate(live.task, text=TEXTS)
    with torch.no_grad():
        answers = live.task.answer(live, batch)
        logits = live.model(**batch.inputs).logits[batch.counted].double()
    nll = functional.cross_entropy(logits, batch.labels)
    metrics = live.task.metrics(answers)
    assert metrics["loss"] == pytest.approx(nll.item(), rel=1e-6)
    assert metrics["perplexity"] == pytest.approx(nll.exp().item(), rel=1e-6)
    assert metrics["accuracy"] == pytest.approx((logits.argmax(-1) == batch.labels).double().mean().item())
    assert [token for row in answers["prediction"] for token in row] == logits.argmax(-1).tolist()
    items = [len(TOKENIZER(text)["input_ids"]) for text in TEXTS]  # and the end less the first
    assert answers["items"] == [len(row) for row in answers["prediction"]] == items


def test_pairs_and_recorded_logits():
    batch = collate(
        SequenceClassification(max_length=16),
        text=["great", "awful"],
        text_pair=["work", "day"],
        label=["good", None],
        teacher_logits=[None, [0.25, -1.0]],
    )
    assert batch.labels.tolist() == [1, IGNORE]
    assert batch.taught.tolist() == [False, True]
    assert recorded_signal(batch).logits.values.tolist() == [[0.0, 0.0], [0.25, -1.0]]
    assert batch.inputs["input_ids"][0].tolist()[:3] == TOKENIZER("great", "work")["input_ids"][:3]
    with pytest.raises(UserError, match="no teacher_logits"):
        recorded_signal(collate(SequenceClassification(), text=["a"], label=["good"]))


def test_evaluating_rows_without_any_label_is_refused():
    live = classifier().eval()
    batch = collate(live.task, text=TEXTS, label=[None, None, None])
    with pytest.raises(UserError, match="no row has a label"):
        live.task.metrics(live.task.answer(live, batch))


@pytest.mark.parametrize(
    "make",
    [lambda: CausalLM(max_length=1), lambda: CausalLM(min_length=1), lambda: SequenceClassification(max_length=2)],
)
def test_lengths_that_cannot_work_are_refused(make):
    with pytest.raises(UserError, match=r"task\.max_length"):
        make()
