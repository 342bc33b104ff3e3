"""Text from a teacher: what it writes is its own, and train reads it like any other rows."""

from __future__ import annotations

import pytest
import torch

from distillkit.data.files import FileDataset
from distillkit.errors import UserError
from distillkit.generation.backends.base import Answer, Prompt
from distillkit.generation.backends.local import ModelWriter, Transformers
from distillkit.generation.prompts import PromptReader
from distillkit.generation.soft_labels import SoftLabels
from distillkit.generation.text import TeacherText
from distillkit.models.live import LiveModel
from distillkit.tasks.causal_lm import CausalLM
from distillkit.tasks.chat import ChatEncoder
from distillkit.tasks.seq2seq_lm import Seq2SeqLM
from distillkit.tasks.sequence_classification import SequenceClassification
from tests.tiny import language_model, write_jsonl

PROMPTS = ["a", "a fine and happy day", "what a pain to see this again and again, what a joy", "so very bad", "great"]


def ask(generator: TeacherText, teacher: LiveModel, data: FileDataset) -> list[dict]:
    rows = data.load()
    return generator.prepare(teacher.eval(), rows, teacher.task).answer(0, generator.total(rows))


@pytest.fixture
def prompts(tmp_path) -> FileDataset:
    path = write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": text, "completion": "x"} for text in PROMPTS])
    return FileDataset(train=str(path), columns={"prompt": "prompt", "completion": "completion"})


@pytest.fixture
def texts(tmp_path) -> FileDataset:
    path = write_jsonl(tmp_path / "texts.jsonl", [{"text": text} for text in PROMPTS])
    return FileDataset(train=str(path), columns={"text": "text"})


def ending(teacher: LiveModel, bias: float) -> LiveModel:
    """Make a model that is the likelier to end its text, the larger the bias is."""
    head = torch.nn.Linear(teacher.model.config.hidden_size, teacher.model.config.vocab_size)
    with torch.no_grad():
        head.weight.copy_(20 * teacher.model.lm_head.weight)
        head.bias.zero_()
        head.bias[teacher.tokenizer.eos_token_id] = bias
    teacher.model.lm_head = head
    return teacher


@torch.no_grad()
@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_a_greedy_answer_is_that_of_the_prompt_alone(prompts, batch_size):
    teacher = ending(language_model(seed=2), 3.0)
    answers = ask(TeacherText(backend=Transformers(batch_size), max_new_tokens=12, temperature=0), teacher, prompts)
    assert sorted(row["prompt"] for row in answers) == sorted(PROMPTS)
    for row in answers:
        ids = torch.tensor([teacher.tokenizer(row["prompt"])["input_ids"]])
        for _ in range(12):  # the most likely token, again and again, without a cache or padding
            ids = torch.cat([ids, teacher.model(input_ids=ids).logits[:, -1:].argmax(dim=-1)], dim=1)
            if ids[0, -1] == teacher.tokenizer.eos_token_id:
                break
        new = ids[0, len(teacher.tokenizer(row["prompt"])["input_ids"]) :].tolist()
        finished = new[-1] == teacher.tokenizer.eos_token_id
        assert (row["completion"], row["finished"]) == (
            teacher.tokenizer.decode(new[:-1] if finished else new),
            finished,
        )
    assert len({row["completion"] for row in answers}) > 1
    assert {row["finished"] for row in answers} == {True, False}


def test_a_continuation_begins_with_its_text(texts):
    found = ask(TeacherText(prompt_tokens=6, max_new_tokens=5), language_model(), texts)
    ours = language_model().tokenizer
    heads = {ours.decode(ours(text)["input_ids"][:6]) for text in PROMPTS}
    assert all(any(row["text"].startswith(head) for head in heads) for row in found)
    assert len(found) == len(PROMPTS)


def test_an_unfinished_continuation_teaches_no_end(tmp_path):
    path = write_jsonl(tmp_path / "t.jsonl", [{"text": "a day", "finished": done} for done in (True, False)])
    loaded = FileDataset(train=str(path), columns={"text": "text", "finished": "finished"}).load()
    tokenizer = language_model().tokenizer
    ids = CausalLM().encode(loaded.split("train")[:], tokenizer, None)["input_ids"]
    assert ids[0] == [*ids[1], tokenizer.eos_token_id]


CHAT = [{"role": "user", "content": "a fine day?"}, {"role": "assistant", "content": "so very good"}]


def chats(tmp_path, rows: list[dict]) -> FileDataset:
    columns = {name: name for name in rows[0]}
    return FileDataset(train=str(write_jsonl(tmp_path / "rows.jsonl", rows)), columns=columns)


def chatting(template: str = "plain") -> LiveModel:
    return LiveModel(language_model().model, language_model().tokenizer, CausalLM(64, chat_template=template))


def spied(monkeypatch) -> list[list[int]]:
    """Collect the prompts that the model is asked, as tokens."""
    found: list[list[int]] = []
    before = ModelWriter.answer

    def answer(self, prompts, sampling):
        found.extend(prompt.ids for prompt in prompts)
        return before(self, prompts, sampling)

    monkeypatch.setattr(ModelWriter, "answer", answer)
    return found


def test_the_last_answer_of_a_conversation_is_written_anew(tmp_path, monkeypatch):
    rows = [{"messages": CHAT}, {"messages": [*CHAT, {"role": "user", "content": "again"}]}]
    teacher, asked = chatting(), spied(monkeypatch)
    found = ask(TeacherText(max_new_tokens=5), teacher, chats(tmp_path, rows))
    encoder = ChatEncoder(teacher.tokenizer, 64)
    trained = encoder(CHAT)
    assert asked[0] == trained.ids[: trained.spans[0]]
    assert asked[1][: len(trained.ids)] == trained.ids
    for row, given in zip(found, ([CHAT[0]], rows[1]["messages"]), strict=True):
        *before, answer = row["messages"]
        assert [{name: turn[name] for name in ("role", "content")} for turn in before] == given
        assert answer["role"] == "assistant"
        encoder(row["messages"])


@pytest.mark.parametrize("template", ["plain", "chat"])
def test_instructions_are_asked_as_they_are_trained_on(tmp_path, monkeypatch, template):
    rows = [{"instruction": "sum up", "input": text, "completion": "fine"} for text in ("", "a happy day")]
    teacher, asked = chatting(), spied(monkeypatch)
    teacher.task.template = template
    source = chats(tmp_path, rows)
    found = ask(TeacherText(max_new_tokens=3), teacher, source)
    trained = teacher.task.encode(source.load().split("train")[:], teacher.tokenizer, None)
    assert asked == [ids[: span[0]] for ids, span in zip(trained["input_ids"], trained["spans"], strict=True)]
    assert [(row["instruction"], row["input"]) for row in found] == [("sum up", ""), ("sum up", "a happy day")]
    assert all(row["completion"] is not None and row["source_row"] == index for index, row in enumerate(found))


def test_an_assistant_ends_its_turn_as_the_template_does():
    for template, expected in (("plain", ([0], [])), ("chatml", ([], ["<|im_end|>"]))):
        assert ChatEncoder(chatting(template).tokenizer, 64).end_of_turn() == expected


def test_a_server_is_asked_by_conversations_and_rows_keep_their_columns():
    row = {"instruction": "sum up", "input": "a day", "system": "be kind", "source": "x", "text": "a b c d"}
    (prompt,) = PromptReader("instruction", CausalLM(), chats=True)([row], [(0, 0)])
    told = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "sum up\n\na day"}]
    assert prompt == Prompt(told[1]["content"], told, draw=(0, 0))
    reader = PromptReader("source", Seq2SeqLM(generate="never"), chats=True, ask="Translate: {source}")
    (prompt,) = reader([{"source": "x"}], [(0, 0)])
    assert prompt.messages == [{"role": "user", "content": "Translate: x"}]
    assert reader.row({"source": "x"}, prompt, Answer("y", "stop", 2, -1.0)) == {
        "source": "x",
        "target": "y",
        "finished": True,
        "finish_reason": "stop",
        "log_prob": -1.0,
        "answer_tokens": 2,
    }
    (prompt,) = PromptReader("text", CausalLM(), prompt_tokens=2)([row], [(0, 0)])
    assert (prompt.text, prompt.continues) == ("a b", True)
    with pytest.raises(UserError, match=r"^generate\.backend: a model that is asked by conversations"):
        PromptReader("text", CausalLM(), chats=True)
    with pytest.raises(UserError, match=r"^generate\.backend: conversations need a chat"):
        PromptReader("messages", CausalLM())


def test_rows_without_a_prompt_are_named_or_skipped(tmp_path):
    rows = [{"prompt": "a"}, {"prompt": None}, {"prompt": "so"}]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    with pytest.raises(UserError, match=r"rows\.jsonl:2: prompt is missing"):
        ask(TeacherText(max_new_tokens=2), language_model(), FileDataset(train=str(path), columns={"prompt": "prompt"}))
    skipping = FileDataset(train=str(path), columns={"prompt": "prompt"}, on_bad_row="skip")
    found = ask(TeacherText(max_new_tokens=2), language_model(), skipping)
    assert [row["source_row"] for row in found] == [0, 2]
    lonely = [{"messages": CHAT}, {"messages": CHAT[1:]}]
    with pytest.raises(UserError, match=r"rows\.jsonl:2: no message is there to be answered"):
        ask(TeacherText(max_new_tokens=2), chatting(), chats(tmp_path, lonely))


def test_shards_make_the_same_rows_as_the_whole(prompts):
    generator, teacher, rows = TeacherText(max_new_tokens=6, samples=2), language_model().eval(), prompts.load()
    asked = generator.prepare(teacher, rows, teacher.task)
    whole, parts = asked.answer(0, 5), [*asked.answer(0, 2), *asked.answer(2, 3), *asked.answer(3, 5)]
    keys = ("prompt", "completion", "finish_reason", "source_row", "answer_tokens")
    assert [[row[key] for key in keys] for row in parts] == [[row[key] for key in keys] for row in whole]
    for ours, theirs in zip(parts, whole, strict=True):
        assert ours["log_prob"] == pytest.approx(theirs["log_prob"], rel=1e-4)


def test_sampling_follows_the_seed(prompts):
    def sampled(seed: int) -> list[dict]:
        torch.manual_seed(torch.seed())
        return ask(TeacherText(seed=seed, temperature=1.0, max_new_tokens=8, samples=2), language_model(), prompts)

    first = sampled(1)
    assert [row["prompt"] for row in first].count("great") == 2
    assert len({row["completion"] for row in first}) > len(PROMPTS)
    assert sampled(1) == first
    assert sampled(2) != first


@pytest.mark.parametrize(
    "settings",
    [{"max_new_tokens": 0}, {"temperature": -1.0}, {"top_p": 0.0}, {"samples": 2, "temperature": 0}],
)
def test_settings_that_cannot_work_are_refused(settings):
    with pytest.raises(UserError, match=r"^generate\."):
        TeacherText(**settings)
    with pytest.raises(UserError, match=r"^generate\.labels"):
        SoftLabels(labels="guess")


def test_a_task_of_the_other_kind_is_refused():
    TeacherText().check(CausalLM())
    SoftLabels().check(SequenceClassification())
    with pytest.raises(UserError, match=r"^generate: causal_lm has no soft labels"):
        SoftLabels().check(CausalLM())
    with pytest.raises(UserError, match=r"^generate: a sequence_classification teacher writes no text"):
        TeacherText().check(SequenceClassification())
