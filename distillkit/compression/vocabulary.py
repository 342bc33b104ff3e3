"""Trim the vocabulary to what a corpus uses: of a small model, most weights are embeddings."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distillkit.compression.tokens import closed, state_of, trimmed
from distillkit.compression.variant import Context, Corpus, Step, Variant, torch_model
from distillkit.errors import UserError
from distillkit.models.live import LiveModel
from distillkit.models.onnx import OnnxModel
from distillkit.models.tokenizers import texts_in

PIECE = 1000  # texts that are encoded at a time
LISTS = ("suppress_tokens", "begin_suppress_tokens")  # settings of generation that hold ids
REFUSED = ("bad_words_ids", "force_words_ids", "forced_decoder_ids", "sequence_bias")


class TrimVocabulary(Step):
    """Keep the tokens that a corpus uses, in tokenizer, embeddings and output head; its texts are encoded as before.

    Special tokens stay, and so do bytes and the characters of what is kept: other texts are spelled in more tokens, as
    by a smaller vocabulary.

    Args:
        splits: Of the dataset, whose texts are the corpus; null: all it has.
        files: Text files that belong to the corpus too, a text a line.
    """

    renumbers = True

    def __init__(self, splits: list[str] | None = None, files: list[str] | None = None) -> None:
        self.splits = splits
        self.files = files or []
        for path in self.files:
            if not Path(path).expanduser().is_file():
                raise UserError(f"no such file: {path}", where="files")

    def check(self, start: LiveModel | OnnxModel) -> None:
        """Refuse models that read no text, and tokenizers of an unknown kind."""
        if isinstance(start, LiveModel):
            if start.task.modality != "text":
                raise UserError("the model reads no text")
            state_of(start.tokenizer)

    def __call__(self, variant: Variant, context: Context) -> Variant:
        """Trim.

        Raises:
            UserError: If the corpus has no texts.
            RuntimeError: If a text is encoded in another way than before, or the model answers otherwise.
        """
        live = torch_model(variant)
        assert context.corpus is not None
        texts = list(self._texts(context.corpus))
        used = np.union1d(ids_of_texts(live.tokenizer, texts), self._ids_of_rows(live, context.corpus))
        if not len(used):
            raise UserError("the corpus has no texts", where="splits")
        old = live.model.config.get_text_config().vocab_size
        mentioned = [index for _, value in _mentions(live.model) for index in _listed(value)]
        kept = closed(live.tokenizer, [*used.tolist(), *(index for index in mentioned if 0 <= index < old)])
        small = LiveModel(_renumbered(live.model, kept), trimmed(live.tokenizer, kept), live.task).eval()
        _check_encodings(live.tokenizer, small.tokenizer, texts, kept)
        _check_answers(live, small, context, kept)
        masks = {
            name: mask for name, mask in variant.masks.items() if mask.shape == small.model.get_parameter(name).shape
        }
        return Variant(small, masks, {"tokens": len(kept), "tokens_before": old})

    def _texts(self, corpus: Corpus) -> Iterator[str]:
        for split in self._splits(corpus):
            yield from texts_in(corpus.rows.split(split))
        for path in self.files:
            yield from (line for line in Path(path).expanduser().read_text(encoding="utf-8").splitlines() if line)

    def _ids_of_rows(self, live: LiveModel, corpus: Corpus) -> np.ndarray:
        """Return the ids that the task's rows hold, templates and prompts included."""
        found = [np.empty(0, dtype=np.int64)]
        for split in self._splits(corpus):
            columns = corpus.encode(split).rows.with_format("arrow")[:]
            names = ["input_ids"] if live.task.adds_head else ["input_ids", "labels"]
            for name in (name for name in names if name in columns.column_names):
                found.append(np.unique(columns[name].combine_chunks().flatten().to_numpy(zero_copy_only=False)))
        ids = np.unique(np.concatenate(found))
        return ids[ids >= 0]

    def _splits(self, corpus: Corpus) -> list[str]:
        return list(corpus.rows.splits) if self.splits is None else self.splits


def ids_of_texts(tokenizer: Any, texts: list[str]) -> np.ndarray:
    """Return the ids that texts are encoded with, each once."""
    used: set[int] = set()
    for start in range(0, len(texts), PIECE):
        for ids in tokenizer(texts[start : start + PIECE], verbose=False, truncation=False, padding=False)["input_ids"]:
            used.update(ids)
    return np.fromiter(used, dtype=np.int64)


def _renumbered(model: Any, kept: list[int]) -> Any:
    """Make a model of the kept tokens alone.

    Raises:
        UserError: If settings hold ids in a form that is not known.
    """
    config = copy.deepcopy(model.config)
    config.get_text_config().vocab_size = len(kept)
    for name, value in _mentions(model, generation=False):
        setattr(config, name, _moved(value, kept))
    small = type(model)._from_config(config, dtype=model.dtype)
    expected, rows = small.state_dict(), torch.tensor(kept)
    state = {}
    for name, tensor in model.state_dict().items():
        wide = [d for d in range(tensor.dim()) if tensor.shape[d] != expected[name].shape[d]]
        state[name] = tensor.index_select(wide[0], rows.to(tensor.device)) if wide else tensor
    small.load_state_dict(state)
    small.tie_weights()
    if model.can_generate():
        small.generation_config = copy.deepcopy(model.generation_config)
        for name, value in _mentions(model, config=False):
            setattr(small.generation_config, name, _moved(value, kept))
    return small.to(model.device)


def _mentions(model: Any, config: bool = True, generation: bool = True) -> Iterator[tuple[str, Any]]:
    """Yield the settings of a model that hold token ids."""
    if config:
        yield from _token_settings(model.config.to_dict())
    if generation and model.can_generate():
        settings = model.generation_config.to_dict()
        for name in REFUSED:
            if settings.get(name) is not None:
                raise UserError(f"generation_config.{name} holds token ids that would be lost", fix="remove it first")
        yield from _token_settings(settings)


def _token_settings(settings: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if (name.endswith("_token_id") or name in LISTS) and value is not None:
            yield name, value


def _listed(value: int | list[int]) -> list[int]:
    return value if isinstance(value, list) else [value]


def _moved(value: int | list[int], kept: list[int]) -> int | list[int] | None:
    """Return the new id of an old one; of one that never was a token, None."""
    found = [kept.index(index) for index in _listed(value) if index in kept]
    return found if isinstance(value, list) else found[0] if found else None


def _check_encodings(old: Any, new: Any, texts: list[str], kept: list[int]) -> None:
    for start in range(0, len(texts), PIECE):
        piece = texts[start : start + PIECE]
        before, after = (t(piece, verbose=False, truncation=False, padding=False)["input_ids"] for t in (old, new))
        for text, ids, now in zip(piece, before, after, strict=True):
            if [kept[index] for index in now] != ids:
                raise RuntimeError(f"the trimmed tokenizer encodes {text[:60]!r} in another way")


@torch.no_grad()
def _check_answers(live: LiveModel, small: LiveModel, context: Context, kept: list[int]) -> None:
    """Compare what both models say about the example, its ids limited to kept ones."""
    size = live.model.config.get_text_config().vocab_size
    new = torch.zeros(size, dtype=torch.int64)  # what is not kept stands for the first token
    new[torch.tensor(kept)] = torch.arange(len(kept))
    inputs = context.example.to(live.device).inputs
    ids = {name: new.to(live.device)[tensor] for name, tensor in inputs.items() if name.endswith("input_ids")}
    old = {name: torch.tensor(kept, device=live.device)[tensor] for name, tensor in ids.items()}
    expected: Tensor = live.model.eval()(**(inputs | old))[0]
    found: Tensor = small.model(**(inputs | ids))[0]
    if not live.task.adds_head:
        expected = expected[..., torch.tensor(kept, device=live.device)]
    real = inputs.get("attention_mask")
    if real is not None and expected.shape[:2] == real.shape:
        expected, found = expected[real.bool()], found[real.bool()]
    difference = float((found - expected).abs().max())
    if not difference <= 1e-4 * max(1.0, float(expected.abs().max())):
        raise RuntimeError(f"the trimmed model differs by {difference:.2g} in its answers")
