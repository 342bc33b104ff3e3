"""Packed rows: the same items, logits, losses and gradients as unpacked ones; what cannot be packed is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

from distillkit.commands.packing import packed
from distillkit.data.encode import Encoded
from distillkit.data.packing import fill, pack
from distillkit.errors import UserError
from distillkit.losses.attention import AttentionKL
from distillkit.losses.contrastive import InfoNCE
from distillkit.losses.divergences import ForwardKL
from distillkit.losses.hidden import HiddenMSE
from distillkit.losses.objective import Objective
from distillkit.losses.relations import RelationKL
from distillkit.losses.task import CrossEntropy
from distillkit.models.anatomy import shape_of
from distillkit.models.live import LiveModel
from distillkit.models.packing import check_packing
from distillkit.models.teachers import FrozenModel
from distillkit.signals import Batch
from distillkit.tasks.causal_lm import CausalLM
from distillkit.training.loop import fit
from tests.tiny import encoded, events, language_model, llama, tokenizer, training

COMMON = {"vocab_size": 320, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
HEADS = {"intermediate_size": 32, "num_key_value_heads": 2, "pad_token_id": 1}
KEEP_APART = {
    "llama": lambda: llama(),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=320, n_embd=16, n_layer=2, n_head=2)),
    "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**COMMON, **HEADS, head_dim=8, sliding_window=6)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**COMMON, **HEADS, sliding_window=6)),
}
MIX = {
    "opt": lambda: OPTForCausalLM(OPTConfig(**COMMON, ffn_dim=32, word_embed_proj_dim=16)),
    "bloom": lambda: BloomForCausalLM(BloomConfig(vocab_size=320, hidden_size=16, n_layer=2, n_head=2)),
    "mamba": lambda: MambaForCausalLM(MambaConfig(vocab_size=320, hidden_size=16, num_hidden_layers=2, state_size=4)),
}


def texts(lengths: list[int], seed: int = 0) -> Batch:
    """A batch of random tokens of which some count."""
    random = np.random.default_rng(seed)
    rows = []
    for length in lengths:
        first = int(random.integers(0, length))
        ids = random.integers(2, 320, length).tolist()
        rows.append({"input_ids": ids, "spans": [first, length], "bytes": length})
    return CausalLM().collate(rows, tokenizer())


def in_the_order_of_texts(batch: Batch, values: torch.Tensor) -> torch.Tensor:
    """Sort what belongs to the items of a packed batch by text and place."""
    text = batch.segments[batch.counted]
    place = batch.inputs["position_ids"][batch.counted]
    return values[torch.from_numpy(np.lexsort((place.numpy(), text.numpy())))]


LENGTHS = [9, 2, 1, 14, 5, 3, 7, 14, 1]


def test_nothing_is_lost_and_hardly_anything_padded():
    batch = texts(LENGTHS)
    rows = pack(batch)
    assert rows.inputs["input_ids"].shape == (4, 14)
    assert set(rows.inputs) == {"input_ids", "position_ids"}
    for text, length in enumerate(LENGTHS):
        mine = rows.segments == text
        assert rows.inputs["input_ids"][mine].tolist() == batch.inputs["input_ids"][text, :length].tolist()
        assert rows.inputs["position_ids"][mine].tolist() == list(range(length))
        assert mine.any(dim=1).sum() == 1  # in one row
        assert rows.counted[mine].tolist() == batch.counted[text, :length].tolist()
    assert (rows.segments == -1).sum() == rows.segments.numel() - sum(LENGTHS)
    assert not rows.counted[rows.segments == -1].any()
    assert in_the_order_of_texts(rows, rows.labels).tolist() == batch.labels.tolist()


def test_first_fit_decreasing():
    assert fill([3, 9, 1, 6, 4], 10) == [[1, 2], [3, 4], [0]]
    assert fill([5, 5, 5], 5) == [[0], [1], [2]]
    random = np.random.default_rng(0)
    lengths = np.minimum(random.lognormal(4.5, 0.7, 64).astype(int) + 2, 512).tolist()
    shares = fill(lengths, max(lengths))
    assert sorted(index for share in shares for index in share) == list(range(64))
    assert all(sum(lengths[index] for index in share) <= max(lengths) for share in shares)
    assert len(shares) * max(lengths) < 1.15 * sum(lengths)


@pytest.mark.parametrize("name", KEEP_APART)
def test_logits_are_those_of_unpacked_rows(name):
    torch.manual_seed(0)
    model = KEEP_APART[name]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0)  # so that attention is not all but even
    check_packing(model)
    live = LiveModel(model, tokenizer(), CausalLM(max_length=32)).eval()
    batch = texts(LENGTHS)
    rows = pack(batch)
    with torch.no_grad():
        found, expected = (live(b).logits.rows(0, len(b.labels)) for b in (rows, batch))
    torch.testing.assert_close(in_the_order_of_texts(rows, found), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", MIX)
def test_a_model_that_mixes_the_texts_of_a_row_is_refused(name):
    torch.manual_seed(0)
    model = MIX[name]()
    with pytest.raises(
        UserError, match=r"task\.packing: \w+ForCausalLM does not keep the texts of a row apart; set it to"
    ):
        check_packing(model)
    assert model.training


def test_half_precision_passes():
    check_packing(llama().bfloat16())


def objective(features: bool = True) -> Objective:
    terms = {"hard": CrossEntropy(), "kd": ForwardKL(2.0)}
    if features:
        terms |= {
            "hidden": HiddenMSE(),
            "attention": AttentionKL(),
            "values": RelationKL(["value-value"], layers="uniform"),
        }
    made = Objective({name: {"weight": 1.0, "loss": loss} for name, loss in terms.items()})
    made.bind(shape_of(llama(1).config), shape_of(llama(2).config))
    return made


def test_every_loss_and_its_gradient_is_that_of_unpacked_rows():
    ours = objective()
    student, teacher = language_model(1), FrozenModel(language_model(2, seed=1), ours.wanted_of_teacher)
    found = []
    for batch in (texts(LENGTHS), pack(texts(LENGTHS))):
        student.zero_grad()
        counts = ours.counts(batch)
        share, sums = ours(student(batch, ours.wanted_of_student), teacher(batch), batch, counts)
        share.backward()
        gradient = torch.cat([parameter.grad.flatten() for parameter in student.parameters()])
        found.append((counts, sums, gradient))
    torch.testing.assert_close(found[1][0], found[0][0])
    torch.testing.assert_close(found[1][1], found[0][1], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found[1][2], found[0][2], rtol=1e-4, atol=1e-6)
    assert found[0][0].tolist()[2:] == [sum(LENGTHS)] * 3


def language_rows(folder: Path) -> Encoded:
    return encoded(folder, CausalLM(max_length=32))


@pytest.mark.parametrize("micro_batch_size", [None, 3])
def test_training_on_packed_rows_is_training_on_unpacked_ones(tmp_path, micro_batch_size):
    lines = {}
    for name in ("unpacked", "packed"):
        data = language_rows(tmp_path / "data")
        settings = {"max_steps": 6, "evaluate_every": 6, "micro_batch_size": micro_batch_size, "group_by_length": False}
        run = training(tmp_path / name, language_model(1), language_model(2, seed=7), data, **settings)
        if name == "packed":
            run.data = packed(data, run.objective, run.student, run.teacher)
            run.settings.group_by_length = True  # which packing has no use for
        fit(run)
        lines[name] = events(tmp_path / name)
    for one, other in zip(lines["unpacked"], lines["packed"], strict=True):
        assert one.get("items") == other.get("items")
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
        assert one.get("perplexity", 0.0) == pytest.approx(other.get("perplexity", 0.0), rel=1e-4)


def test_perplexity_does_not_depend_on_packing(tmp_path):
    live = language_model().eval()
    data = language_rows(tmp_path)
    rows = replace(data, packed=True)
    sums = []
    with torch.no_grad():
        for size, source in ((len(data), data), (1, data), (len(data), rows), (7, rows)):
            total = items = 0.0
            for start in range(0, len(data), size):
                batch = source.batch(range(start, min(start + size, len(data))))
                logits = live(batch).logits.rows(0, len(batch.labels)).double()
                total += torch.nn.functional.cross_entropy(logits, batch.labels, reduction="sum").item()
                items += len(batch.labels)
            sums.append(total / items)
    assert sums == pytest.approx([sums[0]] * 4, rel=1e-5)


def test_losses_on_whole_rows_and_other_teachers_are_refused(tmp_path):
    data, student = language_rows(tmp_path), language_model(1)
    rows = Objective({"rows": {"weight": 1.0, "loss": InfoNCE()}})
    rows.bind(shape_of(student.model.config), shape_of(student.model.config))
    teacher = FrozenModel(language_model(1), rows.wanted_of_teacher)
    with pytest.raises(UserError, match=r"loss\.terms\.rows: it looks at rows as a whole.*set task\.packing=false"):
        packed(data, rows, student, teacher)
    with pytest.raises(UserError, match="neither recorded logits nor stored features are those of packed rows"):
        packed(data, objective(features=False), student, lambda batch: None)
    assert packed(data, objective(), student, FrozenModel(language_model(2))).packed
