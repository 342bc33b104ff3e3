"""Image classification: an item is an image, and of one class."""

from __future__ import annotations

from importlib.util import find_spec
from io import BytesIO
from typing import Any

import torch
from transformers import AutoModelForImageClassification

from distillkit.errors import UserError
from distillkit.signals import Batch
from distillkit.tasks.base import Row
from distillkit.tasks.sequence import check_recorded, recorded_logits
from distillkit.tasks.sequence_classification import SequenceClassification


class ImageClassification(SequenceClassification):
    """One `label` for each `image`: a file's path, or {bytes, path} as datasets keep images.

    Images are decoded when a batch is made, by Pillow, and prepared by the image processor that comes with the model.

    Args:
        metrics: As `SequenceClassification`.
        positive: Likewise.
    """

    name = "image_classification"
    required_columns = (("image",),)
    modality = "image"

    def __init__(self, metrics: list[str] | None = None, positive: str | None = None) -> None:
        if find_spec("PIL") is None:
            raise UserError("images need the package Pillow", where="task", fix="pip install 'distillkit[images]'")
        super().__init__(metrics=metrics, positive=positive)

    def auto_class(self) -> Any:
        """Return the transformers AutoModel class."""
        return AutoModelForImageClassification

    def encode(self, rows: dict[str, list[Any]], tokenizer: Any, label_ids: dict[str, int] | None) -> dict[str, list]:  # noqa: ARG002
        """Turn hard labels into ids; the images stay as they are, once they were seen to be some."""
        given = rows.get("label") or [None] * len(rows["image"])
        columns = {"image": rows["image"], "length": [1] * len(given)} | self.encode_labels(given, label_ids or {})
        recorded = check_recorded(rows["teacher_logits"], len(label_ids or ())) if "teacher_logits" in rows else {}
        bad = [(index, reason) for index, image in enumerate(rows["image"]) if (reason := _problem(image))]
        bad += recorded.pop("bad", [])
        return columns | recorded | ({"bad": bad} if bad else {})

    def collate(self, rows: list[Row], tokenizer: Any) -> Batch:
        """Decode and prepare images; `tokenizer` is the image processor."""
        images = [open_image(row["image"]) for row in rows]
        inputs = {"pixel_values": tokenizer(images=images, return_tensors="pt")["pixel_values"]}
        counted = torch.ones(len(rows), dtype=torch.bool)
        recorded, taught = recorded_logits(rows)
        return Batch(inputs, counted, self.labels(rows), taught, recorded, extras=self.extras(rows))


def open_image(image: Any) -> Any:
    """Decode a file, or the bytes of one, to RGB.

    Raises:
        UserError: If Pillow cannot.
    """
    try:
        return _open(image).convert("RGB")
    except OSError as error:
        raise UserError(f"no image ({error})", where=_name(image)) from error


def _open(image: Any) -> Any:
    from PIL import Image

    return Image.open(image if isinstance(image, str) else BytesIO(image["bytes"]) if image["bytes"] else image["path"])


def _problem(image: Any) -> str | None:
    """Tell what is wrong with an image, without decoding it."""
    try:
        with _open(image) as opened:
            opened.verify()
    except (OSError, SyntaxError, AttributeError) as error:  # what Pillow raises for what it cannot read
        return f"image cannot be read ({error})"
    return None


def _name(image: Any) -> str:
    return image if isinstance(image, str) else image["path"] or "image"
