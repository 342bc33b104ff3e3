"""Encoder-decoders: what counts, that padding changes nothing, what is written, copied layers, configs from scratch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from sacrebleu.metrics import BLEU, CHRF
from torch.nn import functional
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    MarianConfig,
    MarianMTModel,
    T5Config,
    T5ForConditionalGeneration,
)

from distillkit.data.encode import Encoded, encode
from distillkit.data.files import FileDataset
from distillkit.errors import UserError
from distillkit.evaluation.evaluate import evaluate
from distillkit.generation.backends.local import Transformers
from distillkit.generation.text import TeacherText
from distillkit.losses.attention import AttentionKL
from distillkit.losses.divergences import ForwardKL
from distillkit.losses.hidden import HiddenMSE
from distillkit.losses.objective import Objective
from distillkit.losses.task import CrossEntropy
from distillkit.models.anatomy import decoder_start, shape_of
from distillkit.models.live import LiveModel
from distillkit.models.load import load_live
from distillkit.models.students import FromConfig, FromTeacher, copy_layers
from distillkit.models.teachers import FrozenModel
from distillkit.models.tokenizers import ByteLevelBPE
from distillkit.signals import Batch
from distillkit.tasks.seq2seq_lm import Seq2SeqLM
from distillkit.training.loop import fit
from tests.tiny import LABELS, accelerator, distillation, events, rows, tokenizer, training, write_jsonl

TOKENIZER = tokenizer()
END, PAD = TOKENIZER.eos_token_id, TOKENIZER.pad_token_id
SPECIAL = {"pad_token_id": PAD, "eos_token_id": END, "vocab_size": 320, "d_model": 16}
HEADS = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
SOURCES = ["a fine and happy day", "so", "what a pain to see this again and again"]
TARGETS = ["good", "so very bad", "bad"]


def model(kind: str, encoder: int = 2, decoder: int = 2, seed: int = 0):
    torch.manual_seed(seed)
    if kind == "t5":
        sizes = {"num_layers": encoder, "num_decoder_layers": decoder, "num_heads": 2, "d_kv": 8, "d_ff": 32}
        return T5ForConditionalGeneration(T5Config(**SPECIAL, **sizes, dropout_rate=0.0, decoder_start_token_id=PAD))
    sizes = {"encoder_layers": encoder, "decoder_layers": decoder, "max_position_embeddings": 64, "dropout": 0.0}
    config, made = (BartConfig, BartForConditionalGeneration) if kind == "bart" else (MarianConfig, MarianMTModel)
    start = END if kind == "bart" else PAD
    settings = (
        SPECIAL | HEADS | sizes | {"decoder_start_token_id": start, "forced_eos_token_id": END, "bos_token_id": END}
    )
    built = made(config(**settings))
    torch.nn.init.normal_(built.final_logits_bias)
    return built


def live_model(kind: str = "t5", encoder: int = 2, decoder: int = 2, seed: int = 0, **task) -> LiveModel:
    settings = {"max_length": 48, "max_target_length": 16, "max_new_tokens": 8, "beams": 2} | task
    return LiveModel(model(kind, encoder, decoder, seed), tokenizer(), Seq2SeqLM(**settings))


def collate(task: Seq2SeqLM, **columns: list) -> Batch:
    encoded = task.encode({"source": SOURCES, "target": TARGETS} | columns, TOKENIZER, None)
    return task.collate(
        [dict(zip(encoded, values, strict=True)) for values in zip(*encoded.values(), strict=True)], TOKENIZER
    )


@pytest.fixture
def data(tmp_path) -> Encoded:
    made = [{"source": row["text"], "target": f"so very {row['label']}"} for row in rows(24)]
    source = FileDataset(
        train=str(write_jsonl(tmp_path / "rows.jsonl", made)), columns={"source": "source", "target": "target"}
    )
    return encode(
        source.load(), "train", Seq2SeqLM(max_length=48, max_target_length=16, generate="never"), tokenizer(), None
    )


def test_the_items_are_the_tokens_of_the_targets_and_the_end():
    batch = collate(Seq2SeqLM())
    targets = [[*TOKENIZER(text)["input_ids"], END] for text in TARGETS]
    assert batch.labels.tolist() == [token for ids in targets for token in ids]
    assert batch.counted.sum(dim=1).tolist() == [len(ids) for ids in targets]
    read = batch.inputs["decoder_input_ids"]
    for row, ids in enumerate(targets):
        assert read[row, 1 : len(ids)].tolist() == ids[:-1]
    assert batch.inputs["attention_mask"].sum(dim=1).tolist() == [len(TOKENIZER(text)["input_ids"]) for text in SOURCES]
    assert batch.taught.all()


def test_what_is_cut_off_teaches_no_end_and_is_counted():
    encoded = Seq2SeqLM(max_length=3, max_target_length=3).encode(
        {"source": SOURCES, "target": TARGETS}, TOKENIZER, None
    )
    assert [len(ids) <= 3 for ids in encoded["input_ids"] + encoded["labels"]] == [True] * 6
    assert END not in encoded["labels"][1]
    assert encoded["truncated"] == [True, True, True]
    assert encoded["length"] == [len(a) + len(b) for a, b in zip(encoded["input_ids"], encoded["labels"], strict=True)]


@pytest.mark.parametrize("kind", ["t5", "bart", "marian"])
def test_logits_and_scores_are_the_models_own(kind):
    live = live_model(kind, generate="never").eval()
    batch = collate(live.task)
    targets = [torch.tensor([*TOKENIZER(text)["input_ids"], END]) for text in TARGETS]
    with torch.no_grad():
        found = live(batch).logits.rows(0, len(batch.labels))
        answers = live.task.answer(live, batch)
        own = []
        for source, target in zip(SOURCES, targets, strict=True):  # transformers shifts by itself, row by row
            ids = torch.tensor([TOKENIZER(source)["input_ids"]])
            own.append(live.model(input_ids=ids, labels=target.unsqueeze(0)).logits[0])
    torch.testing.assert_close(found, torch.cat(own), rtol=1e-4, atol=1e-5)
    nll = functional.cross_entropy(torch.cat(own).double(), torch.cat(targets))
    metrics = live.task.metrics(answers)
    assert metrics["loss"] == pytest.approx(nll.item(), rel=1e-5)
    assert metrics["accuracy"] == pytest.approx(
        (torch.cat(own).argmax(-1) == torch.cat(targets)).double().mean().item()
    )


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_padding_changes_no_loss(kind):
    student, teacher = live_model(kind, 1, 1).eval(), FrozenModel(live_model(kind, seed=1))
    batch, objective = collate(student.task), distillation()
    counts = objective.counts(batch)
    pads = {"input_ids": PAD, "attention_mask": 0, "decoder_input_ids": PAD}
    inputs = {name: functional.pad(tensor, (0, 7), value=pads[name]) for name, tensor in batch.inputs.items()}
    wide = replace(batch, inputs=inputs, counted=functional.pad(batch.counted, (0, 7)))
    with torch.no_grad():
        loss, wider = (objective(student(b), teacher(b), b, counts)[0].item() for b in (batch, wide))
    assert wider == pytest.approx(loss, abs=1e-5)


def test_teacher_and_student_each_begin_as_they_are_used_to():
    bart, marian = live_model("bart"), live_model("marian")
    assert (decoder_start(bart.model), decoder_start(marian.model)) == (END, PAD)
    student = live_model("marian", 1, 1)
    batch, objective = collate(student.task), distillation()
    share, _ = objective(student(batch), FrozenModel(bart)(batch), batch, objective.counts(batch))
    share.backward()
    assert student.model.model.shared.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("kind", ["t5", "bart"])
@pytest.mark.parametrize("beams", [1, 3])
def test_what_is_written_is_what_transformers_writes_and_judged_by_sacrebleu(kind, beams):
    live = live_model(kind, beams=beams, length_penalty=0.6).eval()
    references = [["good", "so very good"], ["so very bad"], None]
    batch = collate(live.task, references=references)
    with torch.no_grad():
        answers = live.task.answer(live, batch)
        texts = []
        for source in SOURCES:
            ids = torch.tensor([TOKENIZER(source)["input_ids"]])
            options = {"length_penalty": 0.6} if beams > 1 else {}
            output = live.model.generate(input_ids=ids, num_beams=beams, max_new_tokens=8, do_sample=False, **options)
            texts.append(TOKENIZER.decode(output[0], skip_special_tokens=True))
    assert answers["text"] == texts
    assert answers["references"] == [*references[:2], ["bad"]]
    metrics = live.task.metrics(answers)
    streams = [["good", "so very bad", "bad"], ["so very good", None, None]]
    assert metrics["bleu"] == pytest.approx(BLEU().corpus_score(texts, streams).score)
    assert metrics["chrf"] == pytest.approx(CHRF().corpus_score(texts, streams).score)
    assert list(metrics) == list(live.task.metric_names)
    assert set(live.task.metric_columns) <= set(answers)


def test_texts_are_written_at_the_end_unless_always():
    final, always, never = (Seq2SeqLM(generate=when) for when in ("final", "always", "never"))
    assert (final.best_metric, final.quick().best_metric, never.best_metric) == ("bleu", "loss", "loss")
    assert final.quick().metric_names == ("loss", "perplexity", "accuracy") == never.metric_names
    assert always.quick() is always
    live = live_model()
    live.task = live.task.quick()
    batch = collate(live.task)
    with torch.no_grad():
        assert "text" not in live.task.answer(live, batch)
    with torch.no_grad(), pytest.raises(UserError, match=r"task\.generate: a function writes no text; set it to never"):
        final.answer(lambda batch: live_model()(batch), batch)


def test_evaluation_does_not_depend_on_the_batch_size(data):
    live = live_model(metrics=["bleu", "rougeL"]).eval()
    found = [evaluate(live, live.task, data, size, accelerator()).metrics for size in (1, 5, 24)]
    assert found[1] == pytest.approx(found[0], rel=1e-5)
    assert found[2] == pytest.approx(found[0], rel=1e-5)


def test_a_deeper_decoder_that_others_have_saved_writes(tmp_path):
    stock = live_model("t5", encoder=1, decoder=3)
    stock.save(tmp_path / "model")
    live = load_live(str(tmp_path / "model"), stock.task, "model").eval()
    batch = collate(live.task)
    with torch.no_grad():
        texts = live.task.answer(live, batch)["text"]
        written = stock.model.eval().generate(
            **{name: batch.inputs[name] for name in ("input_ids", "attention_mask")},
            **{"num_beams": 2, "max_new_tokens": 8, "do_sample": False, "use_cache": False},
        )
    assert texts == TOKENIZER.batch_decode(written, skip_special_tokens=True)


@pytest.mark.parametrize("kind", ["t5", "bart", "marian"])
def test_layers_of_both_stacks_are_copied(kind):
    teacher = live_model(kind, 4, 3)
    rows_ = FromTeacher(layers=[1, 3], decoder_layers=1)
    assert rows_.shape(teacher.model.config).depth == 2
    student = rows_.build(teacher.task, None, None, teacher)
    batch = collate(teacher.task)
    with torch.no_grad():
        student.eval()(batch)
    ours, theirs = student.model.state_dict(), teacher.model.state_dict()
    stack, number = (
        ("block", "encoder.block.1.layer.0.SelfAttention.q.weight")
        if kind == "t5"
        else ("layers", "model.encoder.layers.1.fc1.weight")
    )
    assert torch.equal(ours[number], theirs[number.replace(f"{stack}.1", f"{stack}.3")])
    encoder = ours[number.replace(f"{stack}.1", f"{stack}.0")]
    assert torch.equal(encoder, theirs[number])
    assert not any(f"decoder.{stack}.1." in name for name in ours)
    bias = [name for name in ours if "relative_attention_bias" in name]
    assert len(bias) == (2 if kind == "t5" else 0)
    assert all(torch.equal(ours[name], theirs[name]) for name in bias)


def test_all_layers_give_the_same_model_and_wrong_ones_are_refused():
    teacher = live_model("t5", 3, 2)
    same = LiveModel(copy_layers(teacher.model, [0, 1, 2], [0, 1]), tokenizer(), teacher.task).eval()
    batch = collate(teacher.task)
    with torch.no_grad():
        torch.testing.assert_close(same(batch).logits.hidden, teacher.eval()(batch).logits.hidden)
    both = FromTeacher(layers=2).build(teacher.task, None, None, teacher).model.config
    assert (both.num_layers, both.num_decoder_layers) == (2, 2)
    with pytest.raises(UserError, match=r"student\.decoder_layers: the teacher has no layer 2; its layers are 0 … 1"):
        FromTeacher(layers=2, decoder_layers=[0, 2]).build(teacher.task, None, None, teacher)
    with pytest.raises(UserError, match=r"student\.decoder_layers: must be a count"):
        FromTeacher(layers=2, decoder_layers=[1, 0])


SCRATCH = {
    "t5": {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_decoder_layers": 1, "num_heads": 2},
    "bart": {"d_model": 16, "encoder_layers": 2, "decoder_layers": 1, "max_position_embeddings": 64, **HEADS},
    "marian": {"d_model": 16, "encoder_layers": 2, "decoder_layers": 1, "max_position_embeddings": 64, **HEADS},
}


@pytest.mark.parametrize("kind", SCRATCH)
def test_from_scratch_with_a_trained_tokenizer(kind, tmp_path):
    made = [{"source": row["text"], "target": row["label"]} for row in rows(20)]
    path = write_jsonl(tmp_path / "rows.jsonl", made)
    source = FileDataset(train=str(path), columns={"source": "source", "target": "target"}).load()
    student = FromConfig(SCRATCH[kind], kind, ByteLevelBPE(vocab_size=300))
    live = student.build(Seq2SeqLM(max_length=48, max_target_length=16, max_new_tokens=4), None, source, None)
    live.save(tmp_path / "model")
    config, tokens = live.model.config, live.tokenizer
    assert config.vocab_size == len(tokens)
    assert (config.eos_token_id, config.pad_token_id) == (tokens.eos_token_id, tokens.pad_token_id)
    assert decoder_start(live.model) == tokens.pad_token_id
    assert tokens.decode(tokens(LABELS[0])["input_ids"]) == LABELS[0]
    reloaded = type(live.model).from_pretrained(tmp_path / "model").eval()
    ids = torch.tensor([tokens("so very good")["input_ids"]])
    wrote = [m.generate(input_ids=ids, max_new_tokens=4, num_beams=2).tolist() for m in (live.model.eval(), reloaded)]
    assert wrote[0] == wrote[1]
    assert wrote[0][0][0] == tokens.pad_token_id


def test_training_learns_and_compares_the_encoders(data, tmp_path):
    run = training(
        tmp_path,
        live_model("bart", 1, 1, generate="never"),
        live_model("bart", seed=7),
        data,
        max_steps=20,
        evaluate_every=20,
    )
    terms = {"hard": CrossEntropy(), "kd": ForwardKL(2.0), "hidden": HiddenMSE(), "attention": AttentionKL()}
    run.objective = Objective({name: {"weight": 1.0, "loss": loss} for name, loss in terms.items()})
    run.objective.bind(shape_of(run.student.model.config), shape_of(run.teacher.live.model.config))
    run.teacher.wanted = run.objective.wanted_of_teacher
    fit(run)
    lines = [line for line in events(tmp_path) if line["event"] == "train"]
    assert lines[-1]["terms"]["hard"] < 0.8 * lines[0]["terms"]["hard"]
    assert set(lines[0]["terms"]) == set(terms)
    counts = run.objective.counts(data.batch([0, 1]))
    assert counts[2] == data.batch([0, 1]).inputs["attention_mask"].sum()


def test_losses_inside_the_decoder_are_refused():
    live = live_model("bart")
    batch = collate(live.task)
    for path in ("model.decoder.layers.0.fc1", "model.decoder"):
        loss = HiddenMSE(modules=[[path, path]])
        loss.bind(shape_of(live.model.config), shape_of(live.model.config))
        objective = Objective({"hidden": {"weight": 1.0, "loss": loss}})
        with pytest.raises(UserError, match=r"is in the decoder; name a module of the encoder"):
            live(batch, objective.wanted_of_student)


def test_a_teacher_writes_targets_for_sources(tmp_path):
    made = [{"source": row["text"]} for row in rows(9)]
    source = FileDataset(train=str(write_jsonl(tmp_path / "rows.jsonl", made)), columns={"source": "source"}).load()
    teacher = live_model("bart").eval()
    writer = TeacherText(backend=Transformers(4), max_new_tokens=6, temperature=0, beams=2)
    writer.check(teacher.task)
    written = writer.prepare(teacher, source, teacher.task).answer(0, 9)
    assert len(written) == 9
    for row in written:
        ids = torch.tensor([TOKENIZER(row["source"])["input_ids"]])
        output = teacher.model.generate(input_ids=ids, max_new_tokens=6, num_beams=2, do_sample=False)[0, 1:].tolist()
        assert row["finished"] == (END in output)
        assert row["target"] == TOKENIZER.decode(output, skip_special_tokens=True)


def test_settings_and_models_that_cannot_work_are_refused():
    for bad in ({"beams": 0}, {"max_target_length": 0}, {"metrics": ["blue"]}, {"max_new_tokens": 0}):
        with pytest.raises(UserError):
            Seq2SeqLM(**bad)
    with pytest.raises(UserError, match=r"task\.max_target_length: 100 tokens are more than the model's 64 positions"):
        Seq2SeqLM(max_target_length=100).prepare(model("bart").config, None, True, "teacher.path")
    with pytest.raises(UserError, match=r"teacher\.path: bert is no encoder-decoder"):
        Seq2SeqLM().prepare(BertConfig(), None, True, "teacher.path")
