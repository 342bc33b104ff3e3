"""Tokenizers: train a small one from scratch, and compare the vocabularies of two."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from distillkit.errors import UserError

END = "<|endoftext|>"  # id 0: ends a text, and starts one where a model wants a start
PAD = "<|pad|>"  # id 1: apart from END, so that a mask of padding never hides an end
MASK = "<|mask|>"  # id 2, where one is wanted: what stands for a hidden token
SMALLEST_VOCABULARY = 258  # 256 bytes and the two special tokens
TEXTS = (  # columns that one is trained on
    *("text", "text_pair", "tokens", "question", "context", "source", "target"),
    *("system", "instruction", "input", "prompt", "completion", "messages"),
)


class ByteLevelBPE:
    """Byte-level byte-pair encoding, trained from scratch.

    Every text is encoded without an unknown token and decodes to itself. The same texts give the same tokenizer.

    Args:
        vocab_size: Tokens, the special ones included; fewer where the texts have no more pairs to merge.
        mask: Whether there is a mask token, for masked language models.
    """

    def __init__(self, vocab_size: int = 1024, mask: bool = False) -> None:
        smallest = SMALLEST_VOCABULARY + mask
        if vocab_size < smallest:
            raise UserError(f"{vocab_size} tokens are too few", where="vocab_size", fix=f"give at least {smallest}")
        self.vocab_size = vocab_size
        self.mask = mask

    def train(self, texts: Iterable[str]) -> PreTrainedTokenizerFast:
        """Learn the merges from texts."""
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=self.vocab_size,
            special_tokens=[END, PAD, *([MASK] if self.mask else [])],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            bos_token=END,
            eos_token=END,
            pad_token=PAD,
            mask_token=MASK if self.mask else None,
            clean_up_tokenization_spaces=False,  # it would break the round trip
        )


def texts_in(rows: Dataset) -> Iterator[str]:
    """Yield the texts that models read or write, of every row."""
    for column in (name for name in TEXTS if name in rows.column_names):
        for value in rows[column][:]:
            if isinstance(value, str):
                yield value
            elif value is not None:  # words, or messages
                yield from (text for text in map(_content, value) if text)


def _content(part: Any) -> str | None:
    return part if isinstance(part, str) else part.get("content")


def same_vocabulary(a: Any, b: Any) -> bool:
    """Tell whether two tokenizers give every id the same token, so that their models' logits can be compared.

    Of image processors: whether they make the same of an image.
    """
    if not isinstance(a, PreTrainedTokenizerBase):
        return a.to_dict() == b.to_dict()
    return a.get_vocab() == b.get_vocab()


def check_same_vocabulary(teacher: Any, student: Any) -> None:
    """Refuse a student whose ids mean other tokens than the teacher's.

    Raises:
        UserError: Naming both sizes and the first id at which they differ.
    """
    if same_vocabulary(teacher, student):
        return
    if not isinstance(teacher, PreTrainedTokenizerBase):
        ours, theirs = student.to_dict(), teacher.to_dict()
        other = ", ".join(name for name in sorted(ours | theirs) if ours.get(name) != theirs.get(name))
        fix = "give the student the teacher's image processor"
        raise UserError(f"student and teacher prepare images in different ways ({other})", where="student", fix=fix)
    known, learned = ({index: token for token, index in t.get_vocab().items()} for t in (teacher, student))
    first = min(index for index in known.keys() | learned.keys() if known.get(index) != learned.get(index))
    raise UserError(
        f"student and teacher have different vocabularies: {len(learned)} and {len(known)} tokens, "
        f"and id {first} is {_quote(learned.get(first))} for the student, {_quote(known.get(first))} for the teacher",
        where="student",
        fix="give the student the teacher's tokenizer",
    )


def _quote(token: str | None) -> str:
    return "absent" if token is None else repr(token)
