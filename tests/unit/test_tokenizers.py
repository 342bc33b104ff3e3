"""Tokenizers: round trips, determinism, files on disk and the comparison of vocabularies."""

import pytest
from transformers import AutoTokenizer

from distillkit.errors import UserError
from distillkit.models.tokenizers import ByteLevelBPE, check_same_vocabulary, same_vocabulary

TEXTS = [
    f"def {name}(first, second):\n    return {name}ed(second, first)\n" for name in ("add", "divide", "multiply")
] * 3


@pytest.fixture(scope="module")
def tokenizer():
    return ByteLevelBPE(vocab_size=300).train(TEXTS)


@pytest.mark.parametrize(
    "text",
    [
        TEXTS[0],
        "  leading and  double spaces , before . punctuation ! don 't",
        "héllo 🎉 漢字 \r\n\t\x00 tail ",
        "<|endoftext|> in the text",
        "",
    ],
)
def test_a_text_decodes_to_itself(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_merges_are_learned(tokenizer):
    assert len(tokenizer(TEXTS[0])["input_ids"]) < len(TEXTS[0]) / 2


def test_special_tokens(tokenizer):
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert tokenizer.bos_token_id == tokenizer.eos_token_id
    assert tokenizer.unk_token is None
    assert tokenizer.eos_token_id not in tokenizer("def add")["input_ids"]  # the task adds it, not the tokenizer


def test_padding_is_masked(tokenizer):
    batch = tokenizer(["a", "def add(a, b)"], padding=True)
    short = batch["attention_mask"][0]
    assert sum(short) == len(tokenizer("a")["input_ids"]) < len(short)
    assert batch["input_ids"][0][-1] == tokenizer.pad_token_id


def test_size_is_what_was_asked_for(tokenizer):
    assert len(tokenizer) == tokenizer.vocab_size == 300
    assert sorted(tokenizer.get_vocab().values()) == list(range(300))


def test_same_texts_same_tokenizer(tokenizer):
    again = ByteLevelBPE(vocab_size=300).train(iter(TEXTS))
    assert again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    assert same_vocabulary(again, tokenizer)


def test_plain_transformers_loads_it(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = TEXTS[0] + " naïve , text"
    assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert loaded.decode(loaded(text)["input_ids"]) == text
    assert same_vocabulary(loaded, tokenizer)
    check_same_vocabulary(tokenizer, loaded)
    assert (loaded.eos_token, loaded.pad_token) == ("<|endoftext|>", "<|pad|>")


def test_other_size_is_refused_with_both_sizes(tokenizer):
    smaller = ByteLevelBPE(vocab_size=280).train(TEXTS)
    assert not same_vocabulary(tokenizer, smaller)
    with pytest.raises(UserError, match=r"different vocabularies: 280 and 300 tokens, and id 280 is absent for the st"):
        check_same_vocabulary(teacher=tokenizer, student=smaller)


def test_other_tokens_of_the_same_size_are_refused(tokenizer):
    other = ByteLevelBPE(vocab_size=300).train([text.replace("a", "ö") for text in TEXTS])
    assert len(other) == len(tokenizer)
    first = min(i for i in range(300) if other.convert_ids_to_tokens(i) != tokenizer.convert_ids_to_tokens(i))
    with pytest.raises(UserError) as refusal:
        check_same_vocabulary(teacher=tokenizer, student=other)
    message = str(refusal.value)
    assert f"id {first} is {other.convert_ids_to_tokens(first)!r} for the student" in message
    assert f"{tokenizer.convert_ids_to_tokens(first)!r} for the teacher" in message


def test_too_small_a_vocabulary_is_refused_at_once():
    with pytest.raises(UserError, match="at least 258"):
        ByteLevelBPE(vocab_size=257)
