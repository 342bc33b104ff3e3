"""Tags of words: which token stands for which word, what counts, and that no entity is lost in silence."""

from __future__ import annotations

import random

import pytest
import torch
from seqeval import metrics as seqeval
from torch.nn import functional

from distillkit.commands.parts import check_fit
from distillkit.errors import UserError
from distillkit.losses.attention import AttentionKL
from distillkit.losses.divergences import ForwardKL
from distillkit.losses.hidden import HiddenMSE
from distillkit.losses.logits import Correlation, LogitMSE
from distillkit.losses.objective import Objective
from distillkit.losses.relations import RelationKL
from distillkit.losses.task import CrossEntropy
from distillkit.models.anatomy import shape_of
from distillkit.models.teachers import FrozenModel, RecordedTeacher
from distillkit.models.tokenizers import ByteLevelBPE
from distillkit.signals import IGNORE, Batch, DenseLogits, Signal
from distillkit.tasks.token_classification import NO_WORD, TokenClassification, word_of_token
from tests.encoders import collate, encoder, padded, rows_of, value, word_piece

TAGS = ["B-LOC", "B-PER", "I-LOC", "I-PER", "O"]
IDS = {name: index for index, name in enumerate(TAGS)}
SENTENCES = [["anna", "lives", "in", "New", "York", "."], ["so", "what"], ["Zoë", "x", "paris-texas"]]
ROWS = [["B-PER", "O", "O", "B-LOC", "I-LOC", "O"], ["O", "O"], ["B-PER", "O", "B-LOC"]]
PIECES = word_piece(["anna", "lives", "in", "new", "york", "so", "what", "paris"])
BYTES = ByteLevelBPE(vocab_size=300).train(" ".join(words) for words in SENTENCES)
TOKENIZERS = {"words": PIECES, "bytes": BYTES}


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request):
    return TOKENIZERS[request.param]


def encoded(tokenizer, **settings) -> list[dict]:
    return rows_of(TokenClassification(**settings).encode({"tokens": SENTENCES, "tags": ROWS}, tokenizer, IDS))


def test_each_word_counts_once_at_its_first_token(tokenizer):
    for row, words, tags in zip(encoded(tokenizer), SENTENCES, ROWS, strict=True):
        items = [(place, word) for place, word in enumerate(row["words"]) if word != NO_WORD]
        assert [word for _, word in items] == list(range(len(words)))
        for place, word in items:
            piece = tokenizer.decode([row["input_ids"][place]]).strip().lower()
            assert words[word].lower().replace("ë", "e").startswith(piece.replace("ë", "e"))
            assert TAGS[row["labels"][place]] == tags[word]
        assert all(row["labels"][place] == IGNORE for place in set(range(len(row["words"]))) - dict(items).keys())
        assert [TAGS[tag] for tag in row["tags"]] == tags
        assert not row["truncated"]


def test_the_words_of_all_tokens_spell_the_sentence(tokenizer):
    for words in SENTENCES:
        text = " ".join(words)
        found = tokenizer(text, return_offsets_mapping=True)
        owners = word_of_token(words, found["offset_mapping"])
        assert [word for word in dict.fromkeys(owners) if word != NO_WORD] == list(range(len(words)))
        for owner, (start, end) in zip(owners, found["offset_mapping"], strict=True):
            if owner != NO_WORD:
                assert text[start:end].strip() in words[owner]


def test_with_all_subwords_an_entity_goes_on_inside_of_a_word():
    (row,) = rows_of(
        TokenClassification(subwords="all").encode(
            {"tokens": [["zoo", "anna"]], "tags": [["B-LOC", "I-LOC"]]}, PIECES, IDS
        )
    )
    shown = list(zip(PIECES.convert_ids_to_tokens(row["input_ids"]), row["labels"], strict=True))
    inside = IDS["I-LOC"]
    assert shown == [
        ("[CLS]", IGNORE),
        ("z", IDS["B-LOC"]),
        ("##o", inside),
        ("##o", inside),
        ("anna", inside),
        ("[SEP]", IGNORE),
    ]
    assert row["words"] == [NO_WORD, 0, 0, 0, 1, NO_WORD]
    (row,) = rows_of(
        TokenClassification(subwords="all", metrics=["accuracy"]).encode(
            {"tokens": [["zoo"]], "tags": [["B-X"]]}, PIECES, {"B-X": 0}
        )
    )
    assert row["labels"] == [IGNORE, 0, 0, 0, IGNORE]


def test_items_are_the_models_own_logits_at_the_counted_tokens(tokenizer):
    live = encoder(TokenClassification(), tokenizer, TAGS)
    batch = collate(live.task, tokenizer, TAGS, tokens=SENTENCES, tags=ROWS)
    assert batch.counted.sum(dim=1).tolist() == [len(words) for words in SENTENCES]
    assert [TAGS[label] for label in batch.labels] == [tag for row in ROWS for tag in row]
    with torch.no_grad():
        logits = live(batch).logits.values
        own = live.model(**batch.inputs).logits
        answers = live.task.answer(live, batch)
    torch.testing.assert_close(logits, own[batch.counted])
    loss = functional.cross_entropy(logits, batch.labels)
    assert live.task.metrics(answers)["loss"] == pytest.approx(loss.item(), rel=1e-6)
    assert [tag for row in answers["prediction"] for tag in row] == [TAGS[tag] for tag in logits.argmax(dim=-1)]
    assert set(live.task.metric_columns) <= set(answers)


class Guess:
    """A model that says the same for everything."""

    def __init__(self, tag: str) -> None:
        self.tag = tag

    def __call__(self, batch: Batch) -> Signal:
        tags = torch.full((len(batch.labels),), IDS[self.tag])
        return Signal(DenseLogits(functional.one_hot(tags, len(TAGS)).float()))


@pytest.mark.parametrize("side", ["right", "left"])
def test_words_that_are_cut_off_are_counted_and_judged_as_outside(side):
    task = TokenClassification(max_length=6, truncation=side)
    columns = task.encode({"tokens": SENTENCES, "tags": ROWS}, PIECES, IDS)
    assert columns["truncated"] == [True, False, True]
    batch = task.collate(rows_of(columns), PIECES)
    answers = task.answer(Guess("B-PER"), batch)
    assert answers["tags"] == ROWS
    kept = ["B-PER"] * 4
    assert answers["prediction"][0] == ([*kept, "O", "O"] if side == "right" else ["O", "O", *kept])
    assert [len(row) for row in answers["prediction"]] == [len(row) for row in ROWS]
    metrics = task.metrics(answers)
    assert metrics["recall"] == seqeval.recall_score(ROWS, answers["prediction"])
    assert metrics["accuracy"] == seqeval.accuracy_score(ROWS, answers["prediction"])


def test_a_word_without_any_token_is_judged_as_outside():
    task = TokenClassification()
    rows = {"tokens": [["anna", "\u200d", "lives"]], "tags": [["B-PER", "I-PER", "O"]]}
    batch = collate(task, PIECES, TAGS, **rows)
    assert batch.counted.sum() == 2
    answers = task.answer(Guess("I-PER"), batch)
    assert answers["prediction"] == [["I-PER", "O", "I-PER"]]
    assert answers["words"] == [3]


def test_metrics_are_those_of_seqeval_on_random_rows():
    source = random.Random(0)
    sentences = [[source.choice(["anna", "york", "zoo", "so"]) for _ in range(source.randint(1, 9))] for _ in range(40)]
    tags = [[source.choice(TAGS) for _ in words] for words in sentences]
    live = encoder(TokenClassification(), PIECES, TAGS)
    batch = collate(live.task, PIECES, TAGS, tokens=sentences, tags=tags)
    with torch.no_grad():
        answers = live.task.answer(live, batch)
    found = live.task.metrics(answers)
    for name in ("f1", "precision", "recall", "accuracy"):
        assert found[name] == pytest.approx(getattr(seqeval, f"{name}_score")(tags, answers["prediction"]))


def test_rows_without_tags_are_taught_but_not_judged():
    task = TokenClassification()
    batch = collate(task, PIECES, TAGS, tokens=SENTENCES, tags=[None, ROWS[1], None])
    assert batch.taught.all()
    assert (batch.labels != IGNORE).sum() == 2
    answers = task.answer(Guess("O"), batch)
    assert task.metrics(answers)["accuracy"] == 1.0
    with pytest.raises(UserError, match="no row has tags"):
        task.metrics({name: values[:1] for name, values in answers.items()})


def test_rows_whose_tags_do_not_fit_are_bad():
    columns = TokenClassification().encode(
        {"tokens": SENTENCES, "tags": [ROWS[0][:-1], ["O", None], ROWS[2]]}, PIECES, IDS
    )
    assert columns["bad"] == [(0, "6 tokens have 5 tags"), (1, "2 tokens have 1 tags")]
    assert len(columns["input_ids"]) == 3


def test_other_tags_have_accuracy_only():
    speech = {"NOUN": 0, "VERB": 1}
    with pytest.raises(UserError, match=r"task\.metrics: NOUN, VERB are no tags of entities.*metrics=\[accuracy\]"):
        TokenClassification().encode({"tokens": SENTENCES}, PIECES, speech)
    task = TokenClassification(metrics=["accuracy"])
    batch = collate(task, PIECES, list(speech), tokens=[["so", "what"]], tags=[["VERB", "NOUN"]])
    assert batch.labels.tolist() == [1, 0]
    assert task.best_metric == "accuracy"


LOSSES = {
    "hard": lambda: CrossEntropy(0.1),
    "kd": lambda: ForwardKL(2.0),
    "mse": LogitMSE,
    "correlation": Correlation,
    "hidden": HiddenMSE,
    "attention": AttentionKL,
    "relations": RelationKL,
}


@pytest.mark.parametrize("name", LOSSES)
def test_padding_changes_no_loss(name, tokenizer):
    task = TokenClassification()
    batch = collate(task, tokenizer, TAGS, tokens=SENTENCES, tags=ROWS)
    student, teacher = encoder(task, tokenizer, TAGS), FrozenModel(encoder(task, tokenizer, TAGS, layers=4, seed=1))
    objective = Objective({"one": {"weight": 1.0, "loss": LOSSES[name]()}})
    objective.bind(shape_of(student.model.config), shape_of(teacher.live.model.config))
    teacher.wanted = objective.wanted_of_teacher
    check_fit(objective, task)
    narrow = value(objective, student, teacher, batch)
    assert narrow > 0
    assert value(objective, student, teacher, padded(batch, 64)) == pytest.approx(narrow, abs=1e-6)


def test_what_does_not_work_is_refused():
    with pytest.raises(UserError, match=r"task\.subwords"):
        TokenClassification(subwords="last")
    with pytest.raises(UserError, match="has no recorded soft labels"):
        RecordedTeacher().load(TokenClassification(), TAGS)
