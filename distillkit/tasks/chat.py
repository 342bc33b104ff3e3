"""Chat data: conversations as a chat template renders them, and which of their tokens the assistant has to say."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from distillkit.errors import UserError

GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")  # what marks the assistant's part in some templates
OTHER = ("▁", "▂")  # two beginnings of a message, one of which differs from any

# For tokenizers without a template of their own.
_SAYS = (
    "{{ message['content'] }}{% for call in message['tool_calls'] or [] %}"
    "{{ '\\n<tool_call>' }}{{ (call['function'] or call) | tojson }}{{ '</tool_call>' }}{% endfor %}"
)
TEMPLATES = {
    "plain": "{% for message in messages %}{{ message['role'] | capitalize }}:"
    f"{{% if message['role'] == 'assistant' %}}{{% generation %}} {_SAYS}{{{{ eos_token }}}}{{% endgeneration %}}"
    f"{{% else %}} {_SAYS}{{% endif %}}{{{{ '\\n\\n' }}}}{{% endfor %}}"
    "{% if add_generation_prompt %}Assistant:{% endif %}",
    "chatml": "{% for message in messages %}<|im_start|>{{ message['role'] + '\\n' }}"
    f"{{% if message['role'] == 'assistant' %}}{{% generation %}}{_SAYS}<|im_end|>{{% endgeneration %}}"
    f"{{% else %}}{_SAYS}<|im_end|>{{% endif %}}{{{{ '\\n' }}}}{{% endfor %}}"
    "{% if add_generation_prompt %}<|im_start|>{{ 'assistant\\n' }}{% endif %}",
}


class CannotEncode(Exception):
    """A conversation and the template do not fit; the message says why."""


@dataclass(frozen=True)
class Conversation:
    """A conversation in tokens.

    Attributes:
        ids: Of the tokens, to the last one that counts.
        spans: `[start, stop, …]`: the tokens that the assistant has to say.
        bytes: Of the text that these tokens are, in UTF-8; special tokens are no text.
        truncated: Whether some of what the assistant says was cut off.
    """

    ids: list[int]
    spans: list[int]
    bytes: int
    truncated: bool


def find_template(name: str | None) -> str | None:
    """Return a built-in template by its name, the content of a file, or a template as it is."""
    if name is None or "{" in name:
        return name
    if name in TEMPLATES:
        return TEMPLATES[name]
    path = Path(name).expanduser()
    if not path.is_file():
        known = ", ".join(TEMPLATES)
        raise UserError(f"no such chat template: {name}", where="task.chat_template", fix=f"{known}, or a Jinja file")
    return path.read_text(encoding="utf-8")


class ChatEncoder:
    """Render and tokenise conversations.

    What counts is what the template marks as the assistant's. If it marks nothing, it is what an assistant's message
    adds to a rendering that ends where the assistant is asked to go on, to the last special token of it: the line
    break that may follow is said by nobody.

    Args:
        tokenizer: With a chat template.
        max_length: Tokens of a conversation; longer ones are cut on the right.

    Raises:
        UserError: If the tokenizer cannot encode conversations.
    """

    def __init__(self, tokenizer: Any, max_length: int) -> None:
        if tokenizer.chat_template is None:
            raise UserError(
                "the tokenizer has no chat template",
                where="task.chat_template",
                fix=f"set it to {' or '.join(TEMPLATES)}, or to a Jinja file",
            )
        if not tokenizer.is_fast:
            raise UserError(f"{type(tokenizer).__name__} does not tell where its tokens stand in a text", where="task")
        self.tokenizer = tokenizer
        self.max_length = max_length
        added = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
        self.special = added | set(tokenizer.all_special_ids)

    def __call__(self, messages: Any, tools: Any = None) -> Conversation:
        """Encode one conversation.

        Args:
            messages: [{"role": str, "content": …, …}]; a part that is null is not there.
            tools: Schemas of functions, or JSON of them, or None.

        Raises:
            CannotEncode: Saying why.
        """
        messages, tools = [_message(message) for message in messages], _tools(tools)
        try:
            text = self._render(messages, tools)
            encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
            if GENERATION.search(self.tokenizer.get_chat_template(None, tools)):
                marked = self.tokenizer.apply_chat_template(
                    messages, tools=tools, return_dict=True, return_assistant_tokens_mask=True
                )["assistant_masks"]
            else:
                marked = self._by_difference(messages, tools, text, encoded)
        except (TemplateError, TypeError, ValueError) as error:
            raise CannotEncode(f"the chat template refuses it ({str(error) or type(error).__name__})") from error
        spans = _spans(marked[: self.max_length])
        stop = spans[-1] if spans else 0
        ids, ends = encoded["input_ids"][:stop], [right for _, right in encoded["offset_mapping"]]
        spoken = sum(
            len(text[ends[index - 1] if index else 0 : ends[index]].encode())
            for index in range(stop)
            if marked[index] and ids[index] not in self.special
        )
        return Conversation(ids, spans, spoken, truncated=1 in marked[self.max_length :])

    def prompt(self, messages: Any, tools: Any = None) -> list[int]:
        """Encode a conversation up to where the assistant is asked to go on; never cut.

        Raises:
            CannotEncode: Saying why.
        """
        try:
            text = self._render([_message(message) for message in messages], _tools(tools), asked=True)
        except (TemplateError, TypeError, ValueError) as error:
            raise CannotEncode(f"the chat template refuses it ({str(error) or type(error).__name__})") from error
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def end_of_turn(self) -> tuple[list[int], list[str]]:
        """Return what an assistant ends its turn with: a special token, or else a text, or nothing."""
        chat = self([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
        if not chat.spans:
            return [], []
        if chat.ids[-1] in self.special:
            return [chat.ids[-1]], []
        _, _, after = self.tokenizer.decode(chat.ids[chat.spans[-2] :]).partition("b")
        return [], [after.strip()] if after.strip() else []

    def _render(self, messages: list[dict[str, Any]], tools: Any, asked: bool = False) -> str:
        return self.tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=asked)

    def _by_difference(self, messages: list[dict[str, Any]], tools: Any, text: str, encoded: Any) -> list[int]:
        """Mark the assistant's tokens (1) by rendering the conversation up to before and after each of its messages."""
        marked = [0] * len(encoded["input_ids"])
        for turn, message in enumerate(messages):
            if message.get("role") != "assistant" or turn == 0:  # what answers nothing does not count
                continue
            start = len(self._prefix_of(text, messages[:turn], tools, asked=True))
            after = self._render(messages[: turn + 1], tools)
            whole = text.startswith(after)
            stop = len(after) if whole else self._next_content(messages, tools, text, turn)
            offsets = encoded["offset_mapping"]
            inside = [i for i, (left, right) in enumerate(offsets) if start < right > left < stop]
            for index in self._turn(inside, encoded, text[:stop], whole):
                marked[index] = 1
        return marked

    def _turn(self, inside: list[int], encoded: Any, text: str, whole: bool) -> list[int]:
        """Cut the tokens of an answer behind its end of turn."""
        ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
        if not whole:  # nobody says what begins the next message
            ends = [index for index in inside if ids[index] == self.tokenizer.eos_token_id]
            if not ends:
                raise CannotEncode("the chat template changes past answers: set one with generation marks")
            return [index for index in inside if index <= ends[0]]
        closing = [index for index in inside if ids[index] in self.special]
        if closing and not text[offsets[closing[-1]][1] :].strip():
            return [index for index in inside if index <= closing[-1]]
        return inside

    def _prefix_of(self, text: str, messages: list[dict[str, Any]], tools: Any, asked: bool) -> str:
        prefix = self._render(messages, tools, asked)
        if not text.startswith(prefix):
            raise CannotEncode("the chat template does not write it turn by turn: set one with generation marks")
        return prefix

    def _next_content(self, messages: list[dict[str, Any]], tools: Any, text: str, turn: int) -> int:
        """Return where the content of the message after `turn` begins: where the text changes with it.

        For templates that write a past answer in another way than the last one, such as without its thoughts.
        """
        following = messages[turn + 1]
        content = str(following["content"])
        changed = following | {"content": OTHER[content.startswith(OTHER[0])] + content}
        other = self._render([*messages[: turn + 1], changed, *messages[turn + 2 :]], tools)
        return next((place for place, (here, there) in enumerate(zip(text, other, strict=False)) if here != there), 0)


def _message(message: Any) -> dict[str, Any]:
    message = {"content": ""} | _without_nulls(message)
    for call in message.get("tool_calls", []):
        function = call.get("function", call)
        if isinstance(function.get("arguments"), str):  # as OpenAI has them; templates expect a mapping
            function["arguments"] = _parsed(function["arguments"], "the arguments of a tool call")
    return message


def _without_nulls(value: Any) -> Any:
    """Leave out null: a table has every field in every row."""
    if isinstance(value, dict):
        return {name: _without_nulls(inner) for name, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value


def _tools(tools: Any) -> Any:
    return _parsed(tools, "tools") if isinstance(tools, str) else _without_nulls(tools) or None


def _parsed(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise CannotEncode(f"{what} are not valid JSON ({error.msg})") from error


def _spans(marked: list[int]) -> list[int]:
    """Turn marks of tokens into `[start, stop, …]`."""
    return [index for index, (before, here) in enumerate(pairwise([0, *marked, 0])) if before != here]
