"""Tokenizers: train a small one from scratch, and compare the vocabularies of two."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from distillkit.errors import UserError

END = "<|endoftext|>"  # id 0: ends a text, and starts one where a model wants a start
PAD = "<|pad|>"  # id 1: apart from END, so that a mask of padding never hides an end
SMALLEST_VOCABULARY = 258  # 256 bytes and the two special tokens


class ByteLevelBPE:
    """Byte-level byte-pair encoding, trained from scratch.

    Every text is encoded without an unknown token and decodes to itself. The same texts give the same tokenizer.

    Args:
        vocab_size: Tokens, the special ones included; fewer where the texts have no more pairs to merge.
    """

    def __init__(self, vocab_size: int = 1024) -> None:
        if vocab_size < SMALLEST_VOCABULARY:
            raise UserError(
                f"{vocab_size} tokens are too few", where="vocab_size", fix=f"give at least {SMALLEST_VOCABULARY}"
            )
        self.vocab_size = vocab_size

    def train(self, texts: Iterable[str]) -> PreTrainedTokenizerFast:
        """Learn the merges from texts."""
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=self.vocab_size,
            special_tokens=[END, PAD],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            bos_token=END,
            eos_token=END,
            pad_token=PAD,
            clean_up_tokenization_spaces=False,  # it would break the round trip
        )


def same_vocabulary(a: PreTrainedTokenizerBase, b: PreTrainedTokenizerBase) -> bool:
    """Tell whether two tokenizers give every id the same token, so that their models' logits can be compared."""
    return a.get_vocab() == b.get_vocab()


def check_same_vocabulary(teacher: PreTrainedTokenizerBase, student: PreTrainedTokenizerBase) -> None:
    """Refuse a student whose ids mean other tokens than the teacher's.

    Raises:
        UserError: Naming both sizes and the first id at which they differ.
    """
    if same_vocabulary(teacher, student):
        return
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
