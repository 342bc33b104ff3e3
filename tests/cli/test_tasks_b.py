"""Masked, causal and sequence-to-sequence language models and images: teacher → student → eval → compress, for each."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import (
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
)

from tests.terminal import Outcome, distillkit
from tests.tiny import events, rows, write_jsonl
from tests.unit.test_images import image_folder

SHORT = ["train.max_steps=4", "train.batch_size=8", "train.learning_rate=0.01", "train.log_every=1"]
FEW = ["evaluate.speed=false", "evaluate.memory=false", "evaluate.resamples=100"]
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
BPE = "student.tokenizer={_target_: distillkit.models.tokenizers.ByteLevelBPE, vocab_size: 300"


def from_config(kind: str, tokenizer: str = f"{BPE}}}", **settings: int) -> list[str]:
    chosen = [f"+student.config.{name}={value}" for name, value in (settings or SIZES).items()]
    return ["student=from_config", f"student.model_type={kind}", *chosen, tokenizer]


BERT = from_config("bert", f"{BPE}, mask: true}}")
LLAMA = from_config("llama")


def conversations(count: int, seed: int) -> list[dict]:
    made = rows(count, seed)
    call = {"type": "function", "function": {"name": "weigh", "arguments": {"word": "fine"}}}
    return [
        {
            "messages": [
                {"role": "user", "content": row["text"]},
                {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "content": "7"},
                {"role": "assistant", "content": row["label"]},
            ]
        }
        if index % 3 == 0
        else {"messages": [{"role": "user", "content": row["text"]}, {"role": "assistant", "content": row["label"]}]}
        for index, row in enumerate(made)
    ]


@pytest.fixture(scope="module", autouse=True)
def kit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("tasks")
    for split, count, seed in (("train", 40, 1), ("validation", 12, 2)):
        made = rows(count, seed)
        write_jsonl(folder / f"texts/{split}.jsonl", [{"text": row["text"]} for row in made])
        write_jsonl(folder / f"pairs/{split}.jsonl", pairs(count, seed))
        write_jsonl(folder / f"chats/{split}.jsonl", conversations(count, seed))
        asked = [
            {"instruction": row["text"], "input": "" if i % 2 else "so", "output": row["label"]}
            for i, row in enumerate(made)
        ]
        write_jsonl(folder / f"asked/{split}.jsonl", asked)
    image_folder(folder / "images")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("DISTILLKIT_CACHE", str(folder / "cache"))
        for name in ("RANK", "LOCAL_RANK", "DISTILLKIT_TRUST"):
            patch.delenv(name, raising=False)
        yield folder


def run(*argv: str) -> Outcome:
    result = distillkit(*argv)
    assert (result.code, result.err) == (0, ""), result.err
    return result


def chain(name: str, task: list[str], scratch: list[str], *distil: str, compress: str = "prune") -> dict:
    """Train a teacher from scratch, distil its layers, prune, compare; return the comparison's models."""
    teacher = ["teacher=live", f"teacher.path={name}/teacher/model"]
    run("train", *task, *SHORT, *scratch, f"output_dir={name}/teacher")
    layers = ["student=from_teacher", "student.layers=2"]
    run("train", *task, *SHORT, *teacher, *layers, *(distil or ["loss=kd"]), f"output_dir={name}/student")
    more = [
        f"compress={compress}",
        f"compress.model={name}/student/model",
        *FEW,
    ]
    run("compress", *task, *SHORT, *teacher, "loss=kd", *more, f"output_dir={name}/small")
    models = {"teacher": "teacher/model", "student": "student/model", "pruned": "small/compressed/retrain"}
    named = [f"+evaluate.models.{key}={name}/{path}" for key, path in models.items()]
    run("eval", *task, *named, *FEW, f"output_dir={name}/eval")
    return json.loads(Path(f"{name}/eval/report.json").read_text())["eval"]["models"]


def data(folder: str) -> list[str]:
    return [f"dataset.train={folder}/train.jsonl", f"dataset.validation={folder}/validation.jsonl"]


def metrics_of(folder: str) -> dict[str, float]:
    return json.loads(Path(folder, "report.json").read_text())["train"]["metrics"]


def test_masked_language_models() -> None:
    task = ["task=masked_lm", "task.max_length=24", "task.whole_words=true", *data("texts")]
    models = chain("masked", task, BERT, compress="prune_int8")
    assert set(models["student"]["metrics"]) >= {"loss", "perplexity", "accuracy"}
    assert models["student"]["metrics"]["loss"] == pytest.approx(metrics_of("masked/student")["loss"], rel=1e-5)
    _, info = AutoModelForMaskedLM.from_pretrained("masked/small/compressed/retrain", output_loading_info=True)
    assert not any(info.values())
    assert AutoTokenizer.from_pretrained("masked/student/model").mask_token_id == 2
    inside = ["teacher=live", "teacher.path=masked/teacher/model", "student=from_teacher", "student.layers=1"]
    run("train", *task, *SHORT, *inside, "loss=tinybert", "output_dir=masked/inside")


def test_a_resumed_masked_model_has_seen_the_same_masks() -> None:
    task = ["train", "task=masked_lm", "task.max_length=24", *data("texts"), *SHORT, *BERT]
    run(*task, "train.checkpoint_every=2", "output_dir=whole", "name=whole")
    run(*task, "train.checkpoint_every=2", "output_dir=resumed", "name=whole", "resume=whole/checkpoints/step-000002")
    assert events(Path("resumed"))[-1] == events(Path("whole"))[-1]
    weights = [Path(folder, "model/model.safetensors").read_bytes() for folder in ("whole", "resumed")]
    assert weights[0] == weights[1]


def test_chats() -> None:
    task = ["task=causal_lm", "task.max_length=128", "task.chat_template=plain", *data("chats")]
    models = chain("chat", task, LLAMA, "loss=kd", "task.packing=true")
    assert models["student"]["metrics"]["bits_per_byte"] > 0
    tokens = AutoTokenizer.from_pretrained("chat/student/model")
    asked = tokens.apply_chat_template([{"role": "user", "content": "so"}], tokenize=False, add_generation_prompt=True)
    assert asked == "User: so\n\nAssistant:"
    AutoModelForCausalLM.from_pretrained("chat/student/model")


def test_instructions_packed_or_not() -> None:
    task = ["task=causal_lm", "task.max_length=256", *data("asked"), "dataset.columns.completion=output"]
    train = ["train", *task, *SHORT, *LLAMA, "train.group_by_length=false"]
    for packing in ("true", "false"):
        run(*train, f"task.packing={packing}", f"output_dir=packing_{packing}", "name=packing")
    losses = [[line["loss"] for line in events(Path(f"packing_{name}"))] for name in ("true", "false")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def pairs(count: int, seed: int) -> list[dict]:
    return [
        {"source": row["text"], "target": f"so {row['label']}", "references": [f"so {row['label']}", row["label"]]}
        for row in rows(count, seed)
    ]


SEQ2SEQ = ["task=seq2seq_lm", "task.max_length=32", "task.max_target_length=8", "task.max_new_tokens=6", "task.beams=2"]


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_encoder_decoders(kind: str) -> None:
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    sizes = {
        "t5": {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 3, "num_decoder_layers": 2, "num_heads": 2},
        "bart": {"d_model": 16, "encoder_layers": 3, "decoder_layers": 2, "max_position_embeddings": 64, **heads},
    }[kind]
    task = [*SEQ2SEQ, *data("pairs"), "task.metrics=[bleu,chrf,rougeL]"]
    loss = {"t5": ["loss=kd"], "bart": ["loss=tinybert_prediction"]}[kind]
    models = chain(kind, task, from_config(kind, **sizes), *loss)
    assert list(models["student"]["metrics"]) == ["bleu", "chrf", "rougeL", "loss", "perplexity", "accuracy"]
    assert metrics_of(f"{kind}/student") == pytest.approx(models["student"]["metrics"], rel=1e-4)
    lines = [line for line in events(Path(kind, "student")) if line["event"] == "evaluate"]
    assert "bleu" not in lines[0]
    model = AutoModelForSeq2SeqLM.from_pretrained(f"{kind}/student/model")
    assert model.config.is_encoder_decoder
    teacher = ["teacher=live", f"teacher.path={kind}/teacher/model"]
    always = ["task.generate=always", "train.best_metric=chrf", "student.path=bart/student/model"]
    if kind == "bart":
        run("train", *task, *SHORT, *teacher, "loss=semantic", *always, "output_dir=bart/inside")
        assert "bleu" in next(line for line in events(Path("bart/inside")) if line["event"] == "evaluate")


def test_targets_are_written_by_a_teacher_and_learned_from() -> None:
    teacher = ["teacher=live", "teacher.path=bart/teacher/model"]
    few = ["generate=text", "generate.max_new_tokens=16", "generate.temperature=1.5", "generate.top_p=1.0"]
    few.append("generate/filters=none")  # what so small a teacher writes hardly ever ends
    run("generate-pseudo", *SEQ2SEQ, *data("pairs"), *teacher, *few, "output_dir=written")
    learned = [*SEQ2SEQ, "dataset=pseudo_text", "dataset.train='written/pseudo/*.parquet'", "task.metrics=[chrf]"]
    run("train", *learned, *SHORT, "student.path=bart/student/model", "output_dir=learned")


def test_images() -> None:
    task = ["task=image_classification", "dataset=images", "dataset.path=images"]
    sizes = {**SIZES, "patch_size": 8}
    processor = "student.tokenizer={_target_: distillkit.models.processors.ImageProcessor, size: 16}"
    models = chain("vit", task, from_config("vit", processor, **sizes), "loss=distilbert", compress="prune_int8")
    assert set(models["student"]["metrics"]) == {"accuracy", "macro_f1", "loss"}
    assert models["student"]["metrics"] == pytest.approx(metrics_of("vit/student"), rel=1e-5)
    AutoModelForImageClassification.from_pretrained("vit/student/model")
    assert AutoImageProcessor.from_pretrained("vit/small/compressed/retrain").size["height"] == 16
    named = ["+evaluate.models.teacher=vit/teacher/model", "+evaluate.models.int8=vit/small/compressed/int8"]
    run("eval", *task, *named, *FEW, "output_dir=vit/exported")
    run("generate-pseudo", *task, "teacher=live", "teacher.path=vit/teacher/model", "output_dir=vit/soft")
    recorded = ["dataset=pseudo", "dataset.train='vit/soft/pseudo/*.parquet'", "teacher=recorded", "loss=kd"]
    run("train", task[0], *recorded, *SHORT, "student.path=vit/student/model", "output_dir=vit/softly")


REFUSED = {
    "no mask token": (
        ["task=masked_lm", *data("texts"), *from_config("bert")],
        "task: the tokenizer has no mask token; use that of a masked language model",
    ),
    "no chat template": (
        ["task=causal_lm", *data("chats"), *LLAMA],
        "task.chat_template: the tokenizer has no chat template; set it to plain or chatml",
    ),
    "a metric that comes at the end": (
        [*SEQ2SEQ, *data("pairs"), "student.path=t5/student/model", "train.best_metric=bleu"],
        "train.best_metric: seq2seq_lm measures 'bleu' at the end only; choose loss, perplexity, accuracy",
    ),
    "no decoder": (
        [*SEQ2SEQ, *data("pairs"), "student.path=masked/student/model"],
        "student.path: bert is no encoder-decoder",
    ),
    "packed models that mix texts": (
        [
            *("task=causal_lm", "task.packing=true", "task.max_length=64", *data("texts")),
            *from_config("bloom", hidden_size=16, n_layer=1, n_head=2),
        ],
        "task.packing: BloomForCausalLM does not keep the texts of a row apart; set it to false",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_work_is_refused_in_one_line(case: str) -> None:
    argv, message = REFUSED[case]
    result = distillkit("train", *argv, *SHORT, "output_dir=refused")
    assert result.code == 2
    assert result.err.count("\n") == 1
    assert message in result.err


def test_an_encoder_decoder_is_exported_and_evaluated() -> None:
    small = ["compress=int8", "compress.model=t5/student/model", *FEW, "output_dir=t5/exported"]
    run("compress", *SEQ2SEQ, *data("pairs"), *small)
    models = json.loads(Path("t5/exported/report.json").read_text())["compress"]["models"]
    assert models["onnx"]["metrics"]["loss"] == pytest.approx(models["uncompressed"]["metrics"]["loss"], rel=1e-3)
    assert Path("t5/exported/compressed/int8/decoder_model.onnx").is_file()
