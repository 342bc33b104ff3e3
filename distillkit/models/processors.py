"""What prepares a model's inputs: a tokenizer for texts, an image processor for images."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerBase

from distillkit.errors import UserError


class ImageProcessor:
    """A plain image processor for models from scratch: resize to a square, scale to 0 … 1, normalise.

    Args:
        size: Pixels of each side.
        mean: Of each colour, subtracted.
        std: Of each colour, divided by.
    """

    def __init__(self, size: int = 224, mean: list[float] | None = None, std: list[float] | None = None) -> None:
        if size < 1:
            raise UserError(f"must be at least 1, got {size}", where="size")
        self.size = size
        self.mean = mean or [0.5, 0.5, 0.5]
        self.std = std or [0.5, 0.5, 0.5]

    def make(self) -> Any:
        """Return the image processor of transformers."""
        from transformers import ViTImageProcessor

        size = {"height": self.size, "width": self.size}
        return ViTImageProcessor(size=size, image_mean=self.mean, image_std=self.std)


def config_facts(processor: Any) -> dict[str, Any]:
    """Return what a model's config has to know of a tokenizer or an image processor."""
    if isinstance(processor, PreTrainedTokenizerBase):
        special = {f"{name}_token_id": getattr(processor, f"{name}_token_id") for name in ("bos", "eos", "pad")}
        return {"vocab_size": len(processor)} | special
    size = processor.size
    return {"image_size": size["height"]} if "height" in size and size["height"] == size["width"] else {}
