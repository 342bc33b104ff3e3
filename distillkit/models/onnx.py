"""A model exported to ONNX, run by ONNX Runtime."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distillkit.errors import UserError
from distillkit.models.live import whole_or_nothing
from distillkit.models.load import load_processor
from distillkit.signals import Batch, Signal
from distillkit.tasks.base import Task

GRAPH = "model.onnx"  # beside it config.json, the tokenizer's files and, above 2 GB, model.onnx.data
PARAMETERS, NONZEROS = "distillkit.parameters", "distillkit.nonzeros"  # keys in the model's metadata
MODULE = "distillkit.module"  # key in a node's metadata: the transformers module that it came from
PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")


def require_onnx() -> None:
    """Refuse in good time what needs the packages of the `onnx` extra.

    Raises:
        UserError: If one is missing.
    """
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise UserError(f"ONNX needs {', '.join(missing)}", fix="pip install 'distillkit[onnx]'")


@dataclass(frozen=True)
class OnnxModel:
    """A model folder with an ONNX graph, and the session that runs it.

    Attributes:
        folder: The folder that it was loaded from and that `save` copies.
        task: What the model is for.
        tokenizer: Of transformers; or an image processor.
        session: Of ONNX Runtime; on the GPU where it can, with as many CPU threads as torch uses.
    """

    folder: Path
    task: Task
    tokenizer: Any
    session: Any

    @classmethod
    def load(cls, folder: Path, task: Task) -> OnnxModel:
        """Load a folder that `save` or an export wrote."""
        require_onnx()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # errors
        options.add_session_config_entry("session.force_spinning_stop", "1")  # idle threads leave the cores to others
        available = onnxruntime.get_available_providers()
        providers = [provider for provider in PROVIDERS if provider in available]
        session = onnxruntime.InferenceSession(folder / GRAPH, options, providers=providers)
        return cls(folder, task, load_processor(str(folder), task, str(folder)), session)

    def __call__(self, batch: Batch) -> Signal:
        """Return the logits of the batch's items, on the batch's device."""
        outputs = {name: values.to(batch.counted.device) for name, values in self.outputs(batch.inputs).items()}
        return Signal(self.task.item_logits(outputs, batch))

    def outputs(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run the graph: name → output, on the CPU."""
        fed = {entry.name: inputs[entry.name].cpu().numpy() for entry in self.session.get_inputs()}
        names = [entry.name for entry in self.session.get_outputs()]
        return dict(zip(names, map(torch.from_numpy, self.session.run(None, fed)), strict=True))

    def count_parameters(self) -> int:
        """Count the parameters of the model that was exported, tied ones once."""
        return int(self.session.get_modelmeta().custom_metadata_map[PARAMETERS])

    def count_nonzeros(self) -> int:
        """Count those that were not zero when the model was exported."""
        return int(self.session.get_modelmeta().custom_metadata_map[NONZEROS])

    def save(self, folder: Path) -> None:
        """Copy the folder, whole or not at all."""
        whole_or_nothing(folder, lambda beside: shutil.copytree(self.folder, beside, dirs_exist_ok=True))


def is_onnx(path: str) -> bool:
    """Tell whether a model folder holds an ONNX graph."""
    return (Path(path).expanduser() / GRAPH).is_file()
