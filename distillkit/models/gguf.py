"""GGUF: the one file that llama.cpp and what is built on it read. Which folders hold one, and how it is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distillkit.errors import UserError
from distillkit.models.gguf_tokens import write_tokens

GGUF = "model.gguf"  # beside it config.json and the tokenizer's files
BLOCK = 32  # neighbouring inputs that share a scale
CODES = ("q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
DTYPES = ("f32", "f16", "bf16", *CODES)
EDGES = "q8_0"  # of embeddings and output head, where the layers have fewer bits, as in llama.cpp's own mixtures
HEADED = (".q_proj.", ".k_proj.")


@dataclass(frozen=True)
class Family:
    """A family of models that GGUF knows.

    Attributes:
        turns: Whether the two halves of a head, which its rotary positions turn against each other, are stored
            alternately.
        fixed: Settings of the config that it cannot express otherwise.
    """

    turns: bool
    fixed: Mapping[str, Any]


FAMILIES = {
    "llama": Family(True, {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}),
    "qwen2": Family(False, {"hidden_act": "silu", "use_sliding_window": False}),
}


def require_gguf() -> None:
    """Refuse in good time what needs the `gguf` extra.

    Raises:
        UserError: If it is missing.
    """
    if find_spec("gguf") is None:
        raise UserError("this needs gguf", fix="pip install 'distillkit[gguf]'")


def gguf_in(path: str) -> str | None:
    """Return the name of the GGUF file of a model folder; None if there is none."""
    return GGUF if (Path(path).expanduser() / GGUF).is_file() else None


def check_family(config: Any) -> Family:
    """Refuse models that GGUF, or this writer of it, does not know.

    Raises:
        UserError: Naming the first setting that is not as it has to be.
    """
    fix = f"it knows {' and '.join(FAMILIES)}; use compress=int8 or compress=int8_weights"
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise UserError(f"no GGUF is written of {config.model_type} models", fix=fix)
    settings = {name: getattr(config, name, value) for name, value in family.fixed.items()}
    found = settings | {"rope_type": config.rope_parameters["rope_type"], "head_dim": _head_width(config)}
    wanted = {**family.fixed, "rope_type": "default"}
    wanted["head_dim"] = found["head_dim"] if family.turns else config.hidden_size // config.num_attention_heads
    for name, value in wanted.items():
        if found[name] != value:
            raise UserError(f"no GGUF is written of {config.model_type} models with {name}={found[name]}", fix=fix)
    return family


def write_gguf(model: Any, tokenizer: Any, path: Path, dtype: str) -> None:
    """Write a language model of a known family with its tokenizer.

    Vectors stay float32. Matrices whose rows are no whole number of blocks are stored in float16.

    Args:
        model: Of transformers.
        tokenizer: Likewise; a byte-level BPE.
        path: The file.
        dtype: Of the matrices: one of `DTYPES`.
    """
    from gguf import GGUFWriter, LlamaFileType, get_tensor_name_map
    from gguf.constants import MODEL_ARCH_NAMES

    config = model.config
    family = check_family(config)
    arch = next(arch for arch, name in MODEL_ARCH_NAMES.items() if name == config.model_type)
    names = get_tensor_name_map(arch, config.num_hidden_layers)
    writer = GGUFWriter(path, config.model_type)
    writer.add_file_type(LlamaFileType[_file_type(dtype)])
    _describe(writer, config)
    write_tokens(writer, tokenizer, config)
    tied = config.tie_word_embeddings
    for name, tensor in model.state_dict().items():
        if tied and name == "lm_head.weight":
            continue
        stem, _, suffix = name.rpartition(".")
        values = tensor.detach().float().cpu()
        if family.turns and any(part in name for part in HEADED):
            heads = config.num_attention_heads if HEADED[0] in name else config.num_key_value_heads
            values = alternating(values, heads)
        _add(writer, f"{names.get_name(stem)}.{suffix}", values.numpy(), _stored(name, values, dtype))
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        step()
    writer.close()


def alternating(values: torch.Tensor, heads: int) -> torch.Tensor:
    """Put the two halves of every head's outputs alternately.

    transformers turns output i of a head of n against output i + n/2, llama.cpp's llama 2i against 2i + 1.
    """
    halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return halves.transpose(1, 2).reshape(values.shape).contiguous()


def _describe(writer: Any, config: Any) -> None:
    width = _head_width(config)
    facts: list[tuple[Callable[[Any], None], Any]] = [
        (writer.add_context_length, config.max_position_embeddings),
        (writer.add_embedding_length, config.hidden_size),
        (writer.add_block_count, config.num_hidden_layers),
        (writer.add_feed_forward_length, config.intermediate_size),
        (writer.add_head_count, config.num_attention_heads),
        (writer.add_head_count_kv, config.num_key_value_heads),
        (writer.add_key_length, width),
        (writer.add_value_length, width),
        (writer.add_rope_dimension_count, width),
        (writer.add_rope_freq_base, config.rope_parameters["rope_theta"]),
        (writer.add_layer_norm_rms_eps, config.rms_norm_eps),
        (writer.add_vocab_size, config.vocab_size),
    ]
    for add, value in facts:
        add(value)


def _head_width(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _file_type(dtype: str) -> str:
    return {"f32": "ALL_F32"}.get(dtype, f"MOSTLY_{dtype.upper()}")


def _stored(name: str, values: torch.Tensor, dtype: str) -> str:
    """Return how one tensor is stored."""
    if values.dim() == 1:
        return "f32"
    if dtype in CODES and values.shape[1] % BLOCK:
        return "f16"
    return EDGES if dtype in CODES and ".layers." not in name else dtype


def _add(writer: Any, name: str, values: np.ndarray, dtype: str) -> None:
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    kind = GGMLQuantizationType[dtype.upper()]
    writer.add_tensor(name, quantize(values, kind), raw_dtype=kind)
