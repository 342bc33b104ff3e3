"""Conversations: exactly which tokens count, with and without generation marks; instructions; bits per byte."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from distillkit.errors import UserError
from distillkit.models.live import LiveModel
from distillkit.signals import Batch
from distillkit.tasks.causal_lm import CausalLM
from distillkit.tasks.chat import TEMPLATES, ChatEncoder, find_template
from distillkit.tasks.prompts import write_prompt
from tests.recipes.conftest import word_piece
from tests.tiny import llama, tokenizer

CHAT = [
    {"role": "system", "content": "be kind"},
    {"role": "user", "content": "a fine day?"},
    {"role": "assistant", "content": "so very good"},
    {"role": "user", "content": "again"},
    {"role": "assistant", "content": "lovely work"},
    {"role": "user", "content": "bye"},
]
# ChatML as most models have it: no generation marks.
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content }}"
    "{% for call in message.tool_calls or [] %}{{ '<tool_call>' + (call.function | tojson) + '</tool_call>' }}"
    "{% endfor %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# The answer before the last loses its thoughts, as in Qwen 3.
FORGETFUL = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' }}"
    "{% if message.role == 'assistant' and not loop.last %}{{ message.content.split('</think>')[-1] }}"
    "{% else %}{{ message.content }}{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def chat_tokenizer(template: str | None, turns: bool = True) -> PreTrainedTokenizerFast:
    """With the turn marks of ChatML as special tokens, or as plain text."""
    made = tokenizer()
    if turns:
        made.add_special_tokens(
            {"additional_special_tokens": ["<|im_start|>", "<|im_end|>"], "eos_token": "<|im_end|>"}
        )
    made.chat_template = template
    return made


def said(tokens: PreTrainedTokenizerFast, messages: list[dict], tools: object = None, length: int = 999) -> list[str]:
    """The text of each span that counts."""
    chat = ChatEncoder(tokens, length)(copy.deepcopy(messages), tools)
    return [tokens.decode(chat.ids[a:b]) for a, b in zip(chat.spans[::2], chat.spans[1::2], strict=True)]


@pytest.mark.parametrize("template", [CHATML, FORGETFUL, TEMPLATES["chatml"]])
def test_of_each_answer_its_tokens_and_the_end_of_turn_count(template):
    tokens = chat_tokenizer(template)
    assert said(tokens, CHAT) == ["so very good<|im_end|>", "lovely work<|im_end|>"]
    chat = ChatEncoder(tokens, 999)(CHAT)
    whole = tokens.apply_chat_template(CHAT)["input_ids"]
    assert chat.ids == whole[: chat.spans[-1]]  # the question that nobody answers is left out
    assert chat.bytes == len("so very good") + len("lovely work")
    assert not chat.truncated


def test_marks_of_the_template_decide_where_there_are_any():
    odd = CHATML.replace("message.content }}", "'' }}{% generation %}{{ message.content }}{% endgeneration %}")
    marked = said(chat_tokenizer(odd), CHAT[:3])
    assert marked == ["be kind", "a fine day?", "so very good"]


def test_thoughts_of_past_answers_are_not_what_counts_if_the_template_drops_them():
    tokens = chat_tokenizer(FORGETFUL)
    chat = [
        CHAT[1],
        {"role": "assistant", "content": "<think>hm</think>good"},
        CHAT[3],
        CHAT[4] | {"content": "<think>oh</think>so"},
    ]
    assert said(tokens, chat) == ["good<|im_end|>", "<think>oh</think>so<|im_end|>"]


def test_without_special_tokens_the_whole_of_what_the_template_adds_counts():
    assert said(chat_tokenizer(CHATML, turns=False), CHAT[:3]) == ["so very good<|im_end|>\n"]


def test_a_built_in_template_needs_no_tokens_of_its_own():
    tokens = chat_tokenizer(TEMPLATES["plain"], turns=False)
    assert said(tokens, CHAT) == [" so very good<|endoftext|>", " lovely work<|endoftext|>"]
    text = tokens.apply_chat_template(CHAT[:3], tokenize=False)
    assert text == "System: be kind\n\nUser: a fine day?\n\nAssistant: so very good<|endoftext|>\n\n"
    asked = tokens.apply_chat_template(CHAT[:2], tokenize=False, add_generation_prompt=True)
    assert text.startswith(asked)
    assert ChatEncoder(tokens, 99)(CHAT[:3]).bytes == len(" so very good")


TOOLS = [{"type": "function", "function": {"name": "day", "description": "what day", "parameters": {"type": "object"}}}]


@pytest.mark.parametrize("template", [CHATML, TEMPLATES["chatml"]])
@pytest.mark.parametrize("arguments", [{"when": "again"}, '{"when": "again"}'])
def test_tool_calls_count_and_tool_turns_are_kept(template, arguments):
    null = {"content": None, "tool_calls": None}
    call = {"type": "function", "function": {"name": "day", "arguments": arguments}}
    chat = [
        null | {"role": "user", "content": "a fine day?"},
        null | {"role": "assistant", "tool_calls": [call]},
        null | {"role": "tool", "content": "grey"},
        null | {"role": "assistant", "content": "so sad"},
    ]
    tokens = chat_tokenizer(template)
    asked, answered = said(tokens, chat, TOOLS)
    assert '{"name": "day", "arguments": {"when": "again"}}</tool_call><|im_end|>' in asked
    assert answered == "so sad<|im_end|>"
    rendered = tokens.decode(ChatEncoder(tokens, 999)(chat).ids)
    assert "<|im_start|>tool\ngrey<|im_end|>" in rendered


def test_what_a_table_fills_up_with_null_is_not_there():
    template = "{% for message in messages %}{{ message.keys() | list | join(',') }};{% endfor %}"
    tokens = chat_tokenizer(template)
    chat = [{"role": "user", "content": "so", "tool_calls": None, "extra": {"a": None, "b": [{"c": None, "d": 1}]}}]
    task = CausalLM(max_length=99)
    assert task.encode({"messages": [chat]}, tokens, None)["input_ids"] == []
    assert tokens.apply_chat_template(chat, tokenize=False) != "content,role,tool_calls,extra;"


def test_long_conversations_are_cut_on_the_right():
    tokens = chat_tokenizer(CHATML)
    whole = ChatEncoder(tokens, 999)(CHAT)
    cut = ChatEncoder(tokens, whole.spans[2] + 1)(CHAT)
    assert cut.ids == whole.ids[: whole.spans[2] + 1]
    assert cut.spans == [*whole.spans[:2], whole.spans[2], whole.spans[2] + 1]
    assert cut.truncated
    task = CausalLM(max_length=whole.spans[0])  # no room for an answer
    assert task.encode({"messages": [CHAT]}, tokens, None)["row"] == []


def test_a_batch_counts_the_outputs_that_predict_what_the_assistant_says():
    tokens, task = chat_tokenizer(CHATML), CausalLM(max_length=200)
    short = [CHAT[1], CHAT[2]]
    batch = collate(task, tokens, messages=[CHAT, short])
    for row, chat in enumerate([CHAT, short]):
        found = ChatEncoder(tokens, 200)(chat)
        counted = [t for a, b in zip(found.spans[::2], found.spans[1::2], strict=True) for t in range(a, b)]
        assert batch.counted[row].nonzero().flatten().tolist() == [position - 1 for position in counted]
        ids = batch.inputs["input_ids"][row]
        assert batch.labels.split(batch.counted.sum(1).tolist())[row].tolist() == ids[counted].tolist()
    assert batch.extras["bytes"] == [len("so very good") + len("lovely work"), len("so very good")]


def collate(task: CausalLM, tokens: PreTrainedTokenizerFast, **columns: list) -> Batch:
    encoded = task.encode(columns, tokens, None)
    assert "bad" not in encoded
    return task.collate(
        [dict(zip(encoded, values, strict=True)) for values in zip(*encoded.values(), strict=True)], tokens
    )


def test_bad_conversations_are_named_with_a_reason():
    strict = "{% if messages[0].role != 'user' %}{{ raise_exception('begin with the user') }}{% endif %}" + CHATML
    tokens = chat_tokenizer(strict)
    broken = [CHAT[1], {"role": "assistant", "tool_calls": [{"function": {"name": "day", "arguments": "{oh"}}]}]
    encoded = CausalLM().encode({"messages": [CHAT, CHAT[1:], broken]}, tokens, None)
    assert encoded["row"] == [1]
    assert [index for index, _ in encoded["bad"]] == [0, 2]
    assert encoded["bad"][0][1] == "the chat template refuses it (begin with the user)"
    assert "not valid JSON" in encoded["bad"][1][1]
    whole = "{% for message in messages %}{{ loop.length ~ message.content }}{% endfor %}"
    bad = CausalLM().encode({"messages": [CHAT]}, chat_tokenizer(whole), None)["bad"]
    assert bad == [(0, "the chat template does not write it turn by turn: set one with generation marks")]


def test_a_tokenizer_without_a_chat_template_is_refused_unless_the_task_has_one():
    with pytest.raises(UserError, match=r"task\.chat_template: the tokenizer has no chat template; set it to plain or"):
        CausalLM().encode({"messages": [CHAT]}, tokenizer(), None)
    live = LiveModel(llama(1), tokenizer(), CausalLM(chat_template="plain", max_length=128))
    assert live.tokenizer.chat_template == TEMPLATES["plain"]
    assert live.task.encode({"messages": [CHAT]}, live.tokenizer, None)["row"] == [0]


def test_chat_templates_come_by_name_file_or_as_they_are(tmp_path):
    (tmp_path / "mine.jinja").write_text(CHATML)
    assert find_template(str(tmp_path / "mine.jinja")) == find_template(CHATML) == CHATML
    with pytest.raises(UserError, match="no such chat template: chatnl; plain, chatml, or a Jinja file"):
        CausalLM(chat_template="chatnl")


def test_instructions_become_prompts():
    with_input = write_prompt("alpaca", "Add {input}.", "1 and 2")
    assert with_input.endswith("### Instruction:\nAdd {input}.\n\n### Input:\n1 and 2\n\n### Response:\n")
    assert with_input.startswith("Below is an instruction that describes a task, paired with an input")
    assert write_prompt("alpaca", "Sing.", "").endswith("request.\n\n### Instruction:\nSing.\n\n### Response:\n")
    assert write_prompt("Q: {instruction} {input}\nA:", "why", None) == "Q: why \nA:"
    with pytest.raises(UserError, match=r"task\.template: unknown template 'alpacka'"):
        CausalLM(template="alpacka")


def test_instructions_are_encoded_like_prompts_or_chats():
    columns = {"instruction": ["so very", "great"], "input": ["good", None], "completion": [" work", " day"]}
    tokens = tokenizer()
    ours = CausalLM(template="Q: {instruction} {input} A:").encode(columns, tokens, None)
    prompts = ["Q: so very good A:", "Q: great  A:"]
    assert ours == CausalLM().encode({"prompt": prompts, "completion": columns["completion"]}, tokens, None)
    tokens = chat_tokenizer(CHATML)
    chat = CausalLM(template="chat").encode(columns | {"system": ["be kind", None]}, tokens, None)
    assert tokens.decode(chat["input_ids"][0]) == (
        "<|im_start|>system\nbe kind<|im_end|>\n<|im_start|>user\nso very\n\ngood<|im_end|>\n"
        "<|im_start|>assistant\n work<|im_end|>"
    )
    assert tokens.decode(chat["input_ids"][1]).startswith("<|im_start|>user\ngreat<|im_end|>")


TEXTS = ["a fine and happy day", "what a pain — ärgerlich 🙂 to see", "so  "]


@pytest.mark.parametrize("make", [tokenizer, lambda: word_piece()])
@pytest.mark.parametrize("length", [99, 4])
def test_bytes_are_those_of_the_predicted_text(make, length):
    tokens = make()
    tokens.pad_token = tokens.pad_token or "[PAD]"
    encoded = CausalLM(max_length=length).encode({"text": TEXTS}, tokens, None)
    for row, text in enumerate(TEXTS):
        mine = [index for index, source in enumerate(encoded["row"]) if source == row]
        given = 0  # the text before the first predicted token of each piece
        for index in mine:
            assert encoded["spans"][index] == [1, len(encoded["input_ids"][index])]
        if make is tokenizer:
            total = sum(encoded["bytes"][index] for index in mine)
            for index in mine:
                given += len(tokens.backend_tokenizer.id_to_token(encoded["input_ids"][index][0]))
            dropped = len(text.encode()) - total - given
            assert 0 <= dropped <= 4 * len(mine)  # a last piece of one token; characters that are cut in two
            if length == 99:
                assert dropped == 0
        elif length == 99:
            assert encoded["bytes"][mine[0]] == len(text.encode())  # [CLS] comes first: all of it is predicted


def test_bytes_of_completions():
    columns = {"prompt": ["a fine", ""], "completion": [" däy", "so very good"]}
    tokens = tokenizer()
    encoded = CausalLM().encode(columns, tokens, None)
    first = len(tokens.decode(tokens("so very good")["input_ids"][:1]))  # follows nothing, so is not predicted
    assert encoded["bytes"] == [5, len("so very good") - first]
    cut = CausalLM(max_length=len(tokens("a fine")["input_ids"]) + 2).encode(columns, tokens, None)
    assert cut["truncated"][0]
    assert cut["bytes"][0] == len(tokens.decode(tokens(" däy")["input_ids"][:1]).encode()) or cut["bytes"][0] <= 4


def test_bits_per_byte_compares_tokenizers():
    """A model that gives every byte 1/256, by bytes or by pairs of them, has 8 bits a byte."""
    task = CausalLM()
    for tokens in (100, 50):
        answers = {"loss": [tokens * (800 / tokens) * math.log(2)], "hits": [0], "items": [tokens], "bytes": [100]}
        assert task.metrics(answers)["bits_per_byte"] == pytest.approx(8.0)
    live = LiveModel(llama(1), tokenizer(), CausalLM(max_length=64)).eval()
    batch = collate(live.task, live.tokenizer, text=TEXTS)
    with torch.no_grad():
        answers = live.task.answer(live, batch)
    expected = sum(answers["loss"]) / math.log(2) / sum(batch.extras["bytes"])
    assert live.task.metrics(answers)["bits_per_byte"] == pytest.approx(expected)
