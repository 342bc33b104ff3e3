"""Vocabularies trimmed to a corpus: the same pieces under new ids, and models that answer as before."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from distillkit.compression.tokens import closed, trimmed
from distillkit.compression.variant import Context, Corpus, Variant
from distillkit.compression.vocabulary import TrimVocabulary
from distillkit.data.encode import encode
from distillkit.data.rows import Handling, Rows
from distillkit.errors import UserError
from distillkit.models.live import LiveModel
from distillkit.models.tokenizers import ByteLevelBPE
from distillkit.schema import TrainSettings
from tests.compressing import batch, family, logits
from tests.encoders import word_piece

SOUNDS = ["ka", "lo", "mi", "ne", "ru", "st", "er", "ing"]
RANDOM = random.Random(0)
WORDS = ["".join(RANDOM.choices(SOUNDS, k=RANDOM.randint(1, 4))) for _ in range(400)]
ALL = [" ".join(RANDOM.choices(WORDS, k=6)) for _ in range(300)]
CORPUS = [" ".join(RANDOM.choices(WORDS[:40], k=5)) + "." for _ in range(60)]
NEW = ["kalomi neruster", "a wholly unseen text: 42!", "mixed Ünïcode 漢字 and emoji 🙂"]


def byte_level() -> PreTrainedTokenizerFast:
    return ByteLevelBPE(600).train(ALL)


def fallback() -> PreTrainedTokenizerFast:
    """Llama 2's kind: byte-pair encoding of whole texts, which spells what it does not know in bytes."""
    made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    spelled = [f"<0x{byte:02X}>" for byte in range(256)]
    special = ["<unk>", "<s>", "</s>", *spelled]
    made.train_from_iterator(ALL, trainers.BpeTrainer(vocab_size=700, special_tokens=special, show_progress=False))
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )


def unigram() -> PreTrainedTokenizerFast:
    """T5's kind, with tokens of its own at the end."""
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=400, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    made.train_from_iterator(ALL, trainer)
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens=["<extra_0>"],
    )
    assert tokenizer.get_vocab()["<extra_0>"] == len(tokenizer) - 1
    return tokenizer


def roberta() -> PreTrainedTokenizerFast:
    """Byte-level, with ends that the post-processor knows by id."""
    made = byte_level()
    made.add_special_tokens({"cls_token": "<s>", "sep_token": "</s>"})
    ids = made.get_vocab()
    made.backend_tokenizer.post_processor = processors.RobertaProcessing(("</s>", ids["</s>"]), ("<s>", ids["<s>"]))
    return made


KINDS: dict[str, Callable[[], Any]] = {
    "WordPiece": lambda: word_piece(["##" + sound for sound in SOUNDS] + SOUNDS + WORDS),
    "byte-level BPE": byte_level,
    "BPE with byte fallback": fallback,
    "Unigram": unigram,
    "RoBERTa": roberta,
}


def used(tokenizer: Any, texts: list[str]) -> set[int]:
    return {index for ids in tokenizer(texts)["input_ids"] for index in ids}


@pytest.mark.parametrize("kind", KINDS)
def test_texts_of_the_corpus_are_cut_into_the_same_pieces(kind):
    tokenizer = KINDS[kind]()
    kept = closed(tokenizer, used(tokenizer, CORPUS))
    small = trimmed(tokenizer, kept)
    assert len(small) == len(kept) < 0.8 * len(tokenizer)
    for text in [*CORPUS, "", CORPUS[0] + " " + CORPUS[1]]:
        ids = small(text)["input_ids"]
        assert [kept[index] for index in ids] == tokenizer(text)["input_ids"]
        assert small.decode(ids) == tokenizer.decode(tokenizer(text)["input_ids"])
    assert small.all_special_tokens == tokenizer.all_special_tokens


@pytest.mark.parametrize("kind", KINDS)
def test_other_texts_are_spelled(kind):
    """Bytes and characters stay: where nothing was unknown before, nothing is unknown now."""
    tokenizer = KINDS[kind]()
    small = trimmed(tokenizer, closed(tokenizer, used(tokenizer, CORPUS)))
    for text in NEW if "byte" in kind or kind == "RoBERTa" else NEW[:1]:
        assert small.unk_token_id not in small(text)["input_ids"] or small.unk_token_id is None
        assert len(small(text)["input_ids"]) >= len(tokenizer(text)["input_ids"])


def test_a_tokenizer_saved_and_loaded_again_is_the_same(tmp_path):
    tokenizer = unigram()
    small = trimmed(tokenizer, closed(tokenizer, used(tokenizer, CORPUS)))
    small.save_pretrained(tmp_path)
    again = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert again(CORPUS)["input_ids"] == small(CORPUS)["input_ids"]


def given(live: LiveModel, texts: list[str], folder: Path, **splits: list[str]) -> Context:
    column = "source" if live.model.config.is_encoder_decoder else "text"
    rows = {name: Dataset.from_dict({column: values, "target": values}) for name, values in splits.items()}
    if column == "text":
        rows = {name: split.remove_columns("target") for name, split in rows.items()}
    data = Rows("corpus", rows, handling=Handling(cache=False))
    labels = ["bad", "good"] if live.task.has_classes else None
    corpus = Corpus(data, lambda split: encode(data, split, live.task, live.tokenizer, labels))
    return Context(batch(live, texts), TrainSettings(), None, folder, corpus=corpus)


def living(name: str, tokenizer: Any) -> LiveModel:
    ends = {"pad_token_id": tokenizer.pad_token_id, "vocab_size": len(tokenizer) + 3}  # three rows for nobody
    if tokenizer.eos_token_id is not None:
        ends |= {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id}
    live = family(name, **ends)
    return LiveModel(live.model, tokenizer, live.task)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("bert", "WordPiece"),
        ("distilbert", "WordPiece"),
        ("llama", "BPE with byte fallback"),
        ("gpt2", "byte-level BPE"),
        ("t5", "Unigram"),
        ("bart", "byte-level BPE"),
    ],
)
def test_a_trimmed_model_answers_as_before_and_loads(name, kind, tmp_path):
    live = living(name, KINDS[kind]())
    before, texts = live.count_parameters(), CORPUS[:8]
    expected = logits(live, batch(live, texts))
    variant = TrimVocabulary()(Variant(live), given(live, texts, tmp_path, train=CORPUS))
    small = variant.model
    assert isinstance(small, LiveModel)
    assert small.count_parameters() < before
    small.save(tmp_path / "model")
    plain, info = type(small.model).from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path / "model")
    again = LiveModel(plain.eval(), tokenizer, live.task)
    found = logits(again, batch(again, texts))
    if not live.task.adds_head:
        old = live.tokenizer.get_vocab()
        names = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
        expected = expected[:, [old[token] for token in names]]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert plain.config.vocab_size == variant.notes["tokens"] == len(tokenizer)
    assert tokenizer.convert_ids_to_tokens(plain.config.pad_token_id) == live.tokenizer.pad_token


def test_generation_goes_on_in_the_same_words(tmp_path):
    live = living("llama", fallback())
    texts = CORPUS[:3]
    small = TrimVocabulary()(Variant(live), given(live, texts, tmp_path, train=ALL)).model
    assert isinstance(small, LiveModel)
    for text in texts:
        written = []
        for model in (live, small):
            asked = model.tokenizer(text, return_tensors="pt")
            asked.pop("token_type_ids", None)
            kept = model.tokenizer.get_vocab() if model is live else None
            output = model.model.generate(
                **asked,
                do_sample=False,
                max_new_tokens=8,
                suppress_tokens=None
                if kept is None
                else sorted({*kept.values()} - {kept[t] for t in small.tokenizer.get_vocab()})
                + [len(live.tokenizer) + i for i in range(3)],
            )
            written.append(model.tokenizer.decode(output[0]))
        assert written[0] == written[1]


def test_what_generation_is_told_is_renumbered(tmp_path):
    live = living("gpt2", byte_level())
    ids = live.tokenizer.get_vocab()
    live.model.generation_config.suppress_tokens = [ids["a"], ids["b"]]
    small = TrimVocabulary()(Variant(live), given(live, CORPUS[:2], tmp_path, train=CORPUS)).model
    suppressed = small.model.generation_config.suppress_tokens
    assert small.tokenizer.convert_ids_to_tokens(suppressed) == ["a", "b"]
    assert small.tokenizer.convert_ids_to_tokens(small.model.generation_config.eos_token_id) == live.tokenizer.eos_token
    live.model.generation_config.bad_words_ids = [[5]]
    with pytest.raises(UserError, match="bad_words_ids"):
        TrimVocabulary()(Variant(live), given(live, CORPUS[:2], tmp_path, train=CORPUS))


def test_all_splits_and_files_make_the_corpus(tmp_path):
    live = living("bert", KINDS["WordPiece"]())
    (tmp_path / "more.txt").write_text(f"{WORDS[300]}\n\n{WORDS[301]}\n")
    context = given(live, CORPUS[:2], tmp_path, train=CORPUS, test=[WORDS[200]])
    step = TrimVocabulary(splits=["train"], files=[str(tmp_path / "more.txt")])
    kept = step(Variant(live), context).model.tokenizer.get_vocab()
    assert {WORDS[300], WORDS[301]} <= set(kept)
    assert WORDS[200] not in kept
    assert WORDS[200] in TrimVocabulary()(Variant(live), context).model.tokenizer.get_vocab()


def test_bad_arguments_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"^files: no such file"):
        TrimVocabulary(files=["missing.txt"])
    live = living("bert", KINDS["WordPiece"]())
    with pytest.raises(UserError, match="no test split"):
        TrimVocabulary(splits=["test"])(Variant(live), given(live, CORPUS[:2], tmp_path, train=CORPUS))
