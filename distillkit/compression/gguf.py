"""Store a language model in one GGUF file, for llama.cpp and what is built on it."""

from __future__ import annotations

import shutil

from distillkit.compression.variant import Context, Kind, Step, Variant, torch_model
from distillkit.errors import UserError, did_you_mean
from distillkit.models.gguf import DTYPES, GGUF, check_family, require_gguf, write_gguf
from distillkit.models.gguf_tokens import splitting
from distillkit.models.live import LiveModel
from distillkit.models.onnx import OnnxModel
from distillkit.models.packed import PackedModel

CAUTION = "timed in transformers, which compute in float: llama.cpp has kernels for it"


class Gguf(Step):
    """Write a GGUF file; each weight goes to the nearest code by itself.

    Args:
        dtype: Of the layers' matrices: "q8_0", "q5_1", "q5_0", "q4_1" or "q4_0", in blocks of 32 neighbouring inputs,
            or "f32", "f16" or "bf16". Embeddings and output head get no less than 8 bits.
    """

    gives = Kind.packed

    def __init__(self, dtype: str = "q8_0") -> None:
        require_gguf()
        if dtype not in DTYPES:
            raise UserError(f"unknown dtype '{dtype}'", where="dtype", fix=did_you_mean(dtype, list(DTYPES)))
        self.dtype = dtype

    def check(self, start: LiveModel | OnnxModel) -> None:
        """Refuse models and tokenizers that the format has no place for."""
        if isinstance(start, LiveModel):
            if start.task.adds_head:
                raise UserError(f"GGUF holds language models, and this one is for {start.task.name}")
            check_family(start.model.config)
            splitting(start.tokenizer)

    def __call__(self, variant: Variant, context: Context) -> Variant:
        """Write and load again."""
        live = torch_model(variant)
        folder = context.folder / "gguf"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        write_gguf(live.model, live.tokenizer, folder / GGUF, self.dtype)
        live.model.config.save_pretrained(folder)
        live.model.generation_config.save_pretrained(folder)
        live.tokenizer.save_pretrained(folder)
        return Variant(PackedModel.load(folder, live.task), notes={"dtype": self.dtype, "caution": CAUTION})
