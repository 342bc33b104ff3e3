"""Image classification: folders and columns of images, the image processor that comes with a model, and its losses."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification, ViTConfig, ViTForImageClassification

from distillkit.data.encode import Encoded, encode
from distillkit.data.images import ImageFolder
from distillkit.errors import UserError
from distillkit.evaluation.evaluate import evaluate
from distillkit.losses.attention import AttentionKL
from distillkit.losses.hidden import HiddenMSE
from distillkit.losses.objective import Objective
from distillkit.losses.task import CrossEntropy
from distillkit.models.anatomy import shape_of
from distillkit.models.live import LiveModel
from distillkit.models.load import load_live
from distillkit.models.processors import ImageProcessor
from distillkit.models.students import FromConfig, FromTeacher
from distillkit.models.teachers import FrozenModel
from distillkit.models.tokenizers import check_same_vocabulary
from distillkit.tasks.image_classification import ImageClassification, open_image
from distillkit.training.loop import fit
from tests.tiny import accelerator, distillation, events, training

CLASSES = ["dark", "light"]
SIZES = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32, "patch_size": 8}


def paint(path: Path, light: bool, seed: int, mode: str = "RGB") -> Path:
    values = np.random.default_rng(seed).integers(0, 100, (20 + seed, 30, 3)) + (150 if light else 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.astype(np.uint8)).convert(mode).save(path)
    return path


def image_folder(folder: Path, count: int = 6) -> Path:
    for split, first in (("train", 0), ("validation", 50)):
        for label in CLASSES:
            for index in range(count):
                mode = "L" if index == 1 else "RGBA" if index == 2 else "RGB"
                paint(folder / split / label / f"{index}.png", label == "light", first + index, mode)
    return folder


def vit(layers: int = 3, seed: int = 0) -> LiveModel:
    torch.manual_seed(seed)
    config = ViTConfig(**SIZES | {"num_hidden_layers": layers}, image_size=16, num_labels=2)
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    config.id2label, config.label2id = dict(enumerate(CLASSES)), {name: i for i, name in enumerate(CLASSES)}
    return LiveModel(ViTForImageClassification(config), ImageProcessor(16).make(), ImageClassification())


@pytest.fixture
def data(tmp_path: Path) -> Encoded:
    rows = ImageFolder(path=str(image_folder(tmp_path / "images")), cache=False).load()
    return encode(rows, "train", ImageClassification(), ImageProcessor(16).make(), CLASSES)


def test_the_folders_are_the_classes(tmp_path):
    rows = ImageFolder(path=str(image_folder(tmp_path / "images", 2))).load()
    assert rows.name == "images"
    table = rows.split("train")
    assert [(Path(row["image"]).name, row["label"]) for row in table] == [
        *(("0.png", "dark"), ("1.png", "dark"), ("0.png", "light"), ("1.png", "light"))
    ]
    assert rows.where("train", 3).endswith("light/1.png")
    assert set(rows.splits) == {"train", "validation"}
    limited = ImageFolder(train=str(tmp_path / "images/train"), limit=3).load()
    assert len(limited.split("train")) == 3


def test_a_batch_is_what_the_image_processor_makes(data):
    batch = data.batch([0, 1, 2, 9])
    processor = ImageProcessor(16).make()
    images = [Image.open(data.rows[index]["image"]).convert("RGB") for index in (0, 1, 2, 9)]
    expected = processor(images=images, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(batch.inputs["pixel_values"], expected)
    assert batch.inputs["pixel_values"].shape == (4, 3, 16, 16)
    assert batch.labels.tolist() == [0, 0, 0, 1]


def test_images_may_be_bytes_in_a_column(data):
    path = data.rows[0]["image"]
    column = {"bytes": Path(path).read_bytes(), "path": None}
    task, processor = ImageClassification(), ImageProcessor(16).make()
    encoded = task.encode({"image": [column], "label": ["light"]}, processor, {"dark": 0, "light": 1})
    rows = [dict(zip(encoded, values, strict=True)) for values in zip(*encoded.values(), strict=True)]
    batch = task.collate(rows, processor)
    assert batch.labels.tolist() == [1]
    torch.testing.assert_close(batch.inputs["pixel_values"][0], data.batch([0]).inputs["pixel_values"][0])


def test_what_is_no_image_is_named(tmp_path):
    folder = image_folder(tmp_path / "images", 2)
    (folder / "train/dark/0.png").write_text("no image")
    broken = ImageFolder(path=str(folder), cache=False).load()
    with pytest.raises(UserError, match=r"dark/0\.png.*image cannot be read"):
        encode(broken, "train", ImageClassification(), ImageProcessor(16).make(), CLASSES)
    skipping = ImageFolder(path=str(folder), on_bad_row="skip", cache=False).load()
    encoded = encode(skipping, "train", ImageClassification(), ImageProcessor(16).make(), CLASSES)
    assert (len(encoded), encoded.counts.bad) == (3, 1)
    with pytest.raises(UserError, match="no image"):
        open_image({"bytes": b"nothing", "path": None})
    assert open_image({"bytes": (folder / "train/dark/1.png").read_bytes(), "path": None}).mode == "RGB"


def test_folders_without_images_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    for settings, message in (
        ({"train": str(tmp_path / "nowhere")}, "dataset.train: no such folder"),
        ({"train": str(tmp_path / "empty")}, "dataset.train: no images in the folders"),
        ({"path": str(tmp_path)}, "dataset.path: no folder train, validation or test"),
        ({}, "dataset: no folders given"),
    ):
        with pytest.raises(UserError, match=message):
            ImageFolder(**settings).load()


def test_the_image_processor_is_saved_with_the_model(tmp_path):
    live = vit()
    live.save(tmp_path / "model")
    assert AutoImageProcessor.from_pretrained(tmp_path / "model").size["height"] == 16
    again = load_live(str(tmp_path / "model"), ImageClassification(), "teacher.path", CLASSES)
    check_same_vocabulary(live.tokenizer, again.tokenizer)
    _, info = AutoModelForImageClassification.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(info.values())
    other = ImageProcessor(16, mean=[0.4, 0.5, 0.5]).make()
    with pytest.raises(UserError, match=r"prepare images in different ways \(image_mean\)"):
        check_same_vocabulary(live.tokenizer, other)
    (tmp_path / "model/preprocessor_config.json").unlink()
    with pytest.raises(UserError, match=r"teacher\.path: no image processor at"):
        load_live(str(tmp_path / "model"), ImageClassification(), "teacher.path", CLASSES)


def test_students_from_layers_and_from_scratch(data):
    teacher = vit()
    student = FromTeacher(layers=[0, 2]).build(teacher.task, CLASSES, None, teacher)
    ours, theirs = student.model.state_dict(), teacher.model.state_dict()
    name = "vit.layers.1.mlp.fc1.weight"
    assert torch.equal(ours[name], theirs[name.replace("layers.1", "layers.2")])
    scratch = FromConfig(SIZES, "vit", ImageProcessor(16)).build(ImageClassification(), CLASSES, None, None)
    assert scratch.model.config.image_size == 16
    assert scratch.labels == CLASSES
    with torch.no_grad():
        assert scratch(data.batch([0, 1])).logits.values.shape == (2, 2)


def test_training_learns_and_looks_inside(data, tmp_path):
    student, teacher = vit(2), vit(3, seed=7)
    run = training(tmp_path, student, teacher, data, max_steps=12, evaluate_every=12)
    terms = {"hard": CrossEntropy(), "hidden": HiddenMSE(), "attention": AttentionKL()}
    run.objective = Objective({name: {"weight": 1.0, "loss": loss} for name, loss in terms.items()})
    run.objective.bind(shape_of(student.model.config), shape_of(teacher.model.config))
    run.teacher = FrozenModel(copy.deepcopy(teacher), run.objective.wanted_of_teacher)
    fit(run)
    lines = [line for line in events(tmp_path) if line["event"] == "train"]
    assert lines[-1]["terms"]["hard"] < 0.7 * lines[0]["terms"]["hard"]
    assert run.objective.counts(data.batch([0, 1, 2])).tolist() == [3, 3, 3]
    found = [evaluate(student.eval(), student.task, data, size, accelerator()).metrics for size in (1, 12)]
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    assert set(found[0]) == {"accuracy", "macro_f1", "loss"}


def test_micro_batches_change_nothing(data, tmp_path):
    losses = []
    for size in (None, 3):
        run = training(
            tmp_path / str(size), vit(1), vit(2, seed=7), data, max_steps=4, evaluate_every=4, micro_batch_size=size
        )
        run.objective = distillation()
        fit(run)
        losses.append([line["loss"] for line in events(tmp_path / str(size)) if line["event"] == "train"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
