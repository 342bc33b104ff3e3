"""A model whose weights lie in a folder as codes of few bits (compressed-tensors, GGUF), and are floats in memory."""

from __future__ import annotations

import shutil
from pathlib import Path

from distillkit.models.live import LiveModel, whole_or_nothing
from distillkit.models.load import load_live
from distillkit.tasks.base import Task


class PackedModel(LiveModel):
    """A model that was loaded from such a folder, which `save` copies."""

    folder: Path

    @classmethod
    def load(cls, folder: Path, task: Task) -> PackedModel:
        """Load a folder that a step wrote."""
        live = load_live(str(folder), task, str(folder), dtype="auto")
        packed = cls(live.model, live.tokenizer, task)
        packed.folder = folder
        return packed.eval()

    def save(self, folder: Path, card: str | None = None) -> None:
        """Copy the folder, whole or not at all."""

        def write(beside: Path) -> None:
            shutil.copytree(self.folder, beside, dirs_exist_ok=True)
            if card is not None:
                (beside / "README.md").write_text(card, encoding="utf-8")

        whole_or_nothing(folder, write)
