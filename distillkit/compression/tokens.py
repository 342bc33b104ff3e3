"""Trim a tokenizer to some of its tokens, so that texts made of these are encoded as before, under new ids."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tokenizers import pre_tokenizers
from transformers import AutoTokenizer

from distillkit.errors import UserError

FILE = "tokenizer.json"
FIX = "of WordPiece, BPE, Unigram and WordLevel models in tokenizer.json all can be"


def closed(tokenizer: Any, used: Iterable[int]) -> list[int]:
    """Return the ids to keep, ascending: those used, and what the tokenizer needs to encode the same texts alike.

    These are its special and added tokens, the bytes or characters that it can fall back on, and of byte-pair
    encodings all that a kept token can be merged of.

    Raises:
        UserError: If it is no tokenizer of a known kind.
    """
    state = state_of(tokenizer)
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    names = {index: token for token, index in vocabulary.items()}
    kept = {names[index] for index in used if index in names}
    kept |= {token["content"] for token in state["added_tokens"]} | set(tokenizer.all_special_tokens)
    model = state["model"]
    if model.get("unk_token") is not None:
        kept.add(model["unk_token"])
    if model["type"] == "Unigram" and model["unk_id"] is not None:
        kept.add(model["vocab"][model["unk_id"]][0])
    kept |= _bytes(vocabulary) | _characters(kept, model, vocabulary)
    if model["type"] == "BPE":
        kept |= _parts(kept, model)
    return sorted(vocabulary[token] for token in kept if token in vocabulary)


def _bytes(vocabulary: dict[str, int]) -> set[str]:
    """Return what byte-level encodings and byte fallback spell any text with."""
    alphabet = set(pre_tokenizers.ByteLevel.alphabet())
    spelled = alphabet if alphabet <= set(vocabulary) else set()
    return (spelled | {f"<0x{byte:02X}>" for byte in range(256)}) & set(vocabulary)


def _characters(kept: set[str], model: dict[str, Any], vocabulary: dict[str, int]) -> set[str]:
    """Return the characters of the kept tokens, so that new words made of them are spelled and not unknown."""
    prefix = model.get("continuing_subword_prefix") or ""
    single = {character for token in kept for character in token.removeprefix(prefix)}
    return (single | {prefix + character for character in single}) & set(vocabulary)


def _parts(kept: set[str], model: dict[str, Any]) -> set[str]:
    made: dict[str, list[list[str]]] = {}
    for pair in _merges(model):
        made.setdefault(_merged(pair, model), []).append(pair)
    found, left = set(kept), list(kept)
    while left:
        for part in (part for pair in made.get(left.pop(), ()) for part in pair):
            if part not in found:
                found.add(part)
                left.append(part)
    return found


def _merges(model: dict[str, Any]) -> list[list[str]]:
    """Return the merges as pairs; older files hold them as text."""
    return [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]


def _merged(pair: list[str], model: dict[str, Any]) -> str:
    return pair[0] + pair[1].removeprefix(model.get("continuing_subword_prefix") or "")


def trimmed(tokenizer: Any, kept: list[int]) -> Any:
    """Return a tokenizer that knows the kept tokens alone, numbered in the order of their old ids.

    Raises:
        UserError: If its files cannot be renumbered.
    """
    names = {index: token for token, index in tokenizer.get_vocab().items()}
    new = {names[old]: number for number, old in enumerate(kept)}
    state = state_of(tokenizer)
    _trim_model(state["model"], new)
    state["added_tokens"] = [token | {"id": new[token["content"]]} for token in state["added_tokens"]]
    _renumber(state.get("post_processor"), new)
    if state.get("padding") is not None:
        state["padding"]["pad_id"] = new[state["padding"]["pad_token"]]
    with TemporaryDirectory(prefix="distillkit-") as folder:
        tokenizer.save_pretrained(folder)
        for path in Path(folder).iterdir():
            if path.name != FILE and path.suffix in (".txt", ".json", ".model") and "config" not in path.name:
                path.unlink()  # other forms of the old vocabulary
        (Path(folder) / FILE).write_text(json.dumps(state, ensure_ascii=False), encoding="utf-8")
        settings = Path(folder) / "tokenizer_config.json"
        config = json.loads(settings.read_text(encoding="utf-8"))
        config.pop("added_tokens_decoder", None)
        settings.write_text(json.dumps(config, ensure_ascii=False, indent=1), encoding="utf-8")
        small = AutoTokenizer.from_pretrained(folder)
    small.name_or_path = tokenizer.name_or_path
    if small.get_vocab() != new:
        raise UserError(f"{type(tokenizer).__name__} cannot be trimmed: it gives its tokens other ids", fix=FIX)
    return small


def state_of(tokenizer: Any) -> dict[str, Any]:
    """Return what tokenizer.json holds.

    Raises:
        UserError: If the tokenizer is none of the tokenizers library.
    """
    backend = vars(tokenizer).get("_tokenizer")
    if backend is None:
        raise UserError(f"{type(tokenizer).__name__} cannot be trimmed", fix=FIX)
    state: dict[str, Any] = json.loads(backend.to_str())
    if state["model"]["type"] not in TRIM:
        raise UserError(f"a {state['model']['type']} tokenizer cannot be trimmed", fix=FIX)
    return state


def _trim_words(model: dict[str, Any], new: dict[str, int]) -> None:
    model["vocab"] = {token: new[token] for token in model["vocab"] if token in new}


def _trim_pairs(model: dict[str, Any], new: dict[str, int]) -> None:
    """Keep the merges whose parts and result are kept, in their order."""
    _trim_words(model, new)
    known = model["vocab"]
    model["merges"] = [
        pair for pair in _merges(model) if pair[0] in known and pair[1] in known and _merged(pair, model) in known
    ]


def _trim_pieces(model: dict[str, Any], new: dict[str, int]) -> None:
    """Keep pieces with their scores; their order is that of the ids."""
    unknown = None if model["unk_id"] is None else model["vocab"][model["unk_id"]][0]
    model["vocab"] = [piece for piece in model["vocab"] if piece[0] in new]
    model["unk_id"] = None if unknown is None else new[unknown]


TRIM: dict[str, Callable[[dict[str, Any], dict[str, int]], None]] = {
    "WordPiece": _trim_words,
    "WordLevel": _trim_words,
    "BPE": _trim_pairs,
    "Unigram": _trim_pieces,
}


def _trim_model(model: dict[str, Any], new: dict[str, int]) -> None:
    TRIM[model["type"]](model, new)


def _renumber(processor: dict[str, Any] | None, new: dict[str, int]) -> None:
    """Give the special tokens that are put around texts their new ids."""
    if processor is None:
        return
    for inner in processor.get("processors", ()):
        _renumber(inner, new)
    for token in processor.get("special_tokens", {}).values():
        token["ids"] = [new[name] for name in token["tokens"]]
    for end in ("sep", "cls"):
        if end in processor:
            processor[end] = [processor[end][0], new[processor[end][0]]]
