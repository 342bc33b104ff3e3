"""A tokenizer as GGUF describes it: byte-level BPE, and how texts are split before its merges."""

from __future__ import annotations

import json
from typing import Any

from distillkit.errors import UserError

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}DIGITS"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITS = {_WORDS.replace("DIGITS", "{1,3}"): "llama-bpe", _WORDS.replace("DIGITS", ""): "qwen2"}
SPLIT_BY = {"GPT-2": "gpt-2", "digits": "smollm"}
NORMALISED = {"qwen2": ("NFC",)}  # which llama.cpp leaves out


def splitting(tokenizer: Any) -> str:
    """Return llama.cpp's name of the way in which a tokenizer splits texts before its merges.

    Raises:
        UserError: If it is no byte-level BPE, or splits in a way that has no name.
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    model, steps = state["model"], _parts(state["pre_tokenizer"], "pretokenizers")
    normalised = tuple(step["type"] for step in _parts(state["normalizer"], "normalizers"))
    plain = model["type"] == "BPE" and not model["byte_fallback"] and model["merges"]
    name = _name(steps) if plain and steps and steps[-1]["type"] == "ByteLevel" else None
    if name is None or normalised not in ((), NORMALISED.get(name)) or model["ignore_merges"] != (name == "llama-bpe"):
        raise UserError(
            "GGUF has no name for the way in which this tokenizer splits texts",
            fix="it knows the byte-level BPE of GPT-2, SmolLM, Llama 3 and Qwen 2",
        )
    return name


def _parts(node: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    if node is None:
        return []
    return node[key] if node["type"] == "Sequence" else [node]


def _name(steps: list[dict[str, Any]]) -> str | None:
    *before, bytewise = steps
    kinds = [step["type"] for step in before]
    if bytewise["add_prefix_space"]:
        return None
    if bytewise["use_regex"] and not before:
        return SPLIT_BY["GPT-2"]
    if bytewise["use_regex"] and kinds == ["Digits"] and before[0]["individual_digits"]:
        return SPLIT_BY["digits"]
    if not bytewise["use_regex"] and kinds == ["Split"] and before[0]["behavior"] == "Isolated":
        return SPLITS.get(before[0]["pattern"].get("Regex", ""))
    return None


def write_tokens(writer: Any, tokenizer: Any, config: Any) -> None:
    """Write vocabulary, merges, special tokens and the template of chats.

    Args:
        writer: Of a GGUF file.
        tokenizer: Of transformers.
        config: Of the model, which may have room for more tokens.
    """
    from gguf import TokenType

    name = splitting(tokenizer)
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    tokens = [f"[PAD{index}]" for index in range(config.vocab_size)]
    kinds = [TokenType.UNUSED] * config.vocab_size
    for token, index in tokenizer.get_vocab().items():
        tokens[index], kinds[index] = token, TokenType.NORMAL
    for added in state["added_tokens"]:
        kinds[added["id"]] = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(name)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in state["model"]["merges"]])
    for index, add in (
        (tokenizer.bos_token_id, writer.add_bos_token_id),
        (tokenizer.eos_token_id, writer.add_eos_token_id),
        (tokenizer.unk_token_id, writer.add_unk_token_id),
        (tokenizer.pad_token_id, writer.add_pad_token_id),
    ):
        if index is not None:
            add(index)
    writer.add_add_bos_token(tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id])
    if tokenizer.chat_template is not None:
        writer.add_chat_template(tokenizer.chat_template)
