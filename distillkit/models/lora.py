"""LoRA: low-rank adapters beside the linear maps of a model's layers, merged into them in the end (Hu et al. 2021)."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from distillkit.errors import UserError
from distillkit.models.levels import head_names, layer_stacks
from distillkit.models.live import whole_or_nothing
from distillkit.models.names import as_list, matching
from distillkit.schema import LoraSettings

TARGETS = "train.lora.targets"


def check_installed() -> None:
    """Refuse LoRA where peft is missing."""
    if find_spec("peft") is None:
        raise UserError("LoRA needs peft", where="train.lora.rank", fix="pip install 'distillkit[peft]'")


def adaptable(model: Any, targets: str | list[str] | None, frozen: set[str]) -> list[str]:
    """Return the linear maps in a model's layers that get an adapter: all, or those that patterns name.

    Args:
        model: A transformers model.
        targets: Shell-style pattern of module names, or several.
        frozen: Parameters that stay as they are; their modules get no adapter.

    Raises:
        UserError: If a pattern matches none of them, or none is left.
    """
    stacks = tuple(f"{stack}." for stack in layer_stacks(model, TARGETS))
    linear = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and name.startswith(stacks)
    ]
    chosen = set(linear) if targets is None else matching(linear, as_list(targets), TARGETS)
    left = [name for name in linear if name in chosen and f"{name}.weight" not in frozen]
    if not left:
        raise UserError("no linear map is left for an adapter", where=TARGETS, fix="freeze less, or name others")
    return left


def trained_beside(model: Any) -> set[str]:
    """Return the parameters that are trained in full beside adapters: the head, unless it is a language model's."""
    return head_names(model) if model.get_output_embeddings() is None else set()


class Adapters:
    """The adapters of one model, which stays the same object; everything else in it is frozen.

    Args:
        model: A transformers model; changed in place until `merge`.
        modules: Names of the linear maps that get one.
        settings: Rank, scale and dropout.
    """

    def __init__(self, model: Any, modules: list[str], settings: LoraSettings) -> None:
        from peft import LoraConfig, LoraModel

        self.model = model
        self.config = LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,
            lora_dropout=settings.dropout,
            target_modules=modules,
            fan_in_fan_out=isinstance(model.get_submodule(modules[0]), Conv1D),
            base_model_name_or_path=model.name_or_path,
        )
        self._tuner = LoraModel(model, self.config, "default")
        self.names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}

    def save(self, folder: Path) -> None:
        """Write what peft loads onto the base model: the adapters, and the head that was trained beside them."""
        from peft import get_peft_model_state_dict

        beside = trained_beside(self.model)
        parameters = dict(self.model.named_parameters())
        tensors = get_peft_model_state_dict(self.model) | {name: parameters[name].detach() for name in beside}
        self.config.modules_to_save = sorted({name.split(".")[0] for name in beside}) or None
        self.config.inference_mode = True

        def write(path: Path) -> None:
            self.config.save_pretrained(str(path))
            named = {f"base_model.model.{name}": tensor.cpu().contiguous() for name, tensor in tensors.items()}
            save_file(named, path / "adapter_model.safetensors", metadata={"format": "pt"})

        whole_or_nothing(folder, write)

    def merge(self) -> None:
        """Add the adapters to the weights that they stand beside, and take them out of the model."""
        self._tuner.merge_and_unload()
