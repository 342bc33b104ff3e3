"""One ONNX graph in ONNX Runtime: tensors by name in, tensors by name out, keys and values of the past among them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin

from distillkit.errors import UserError

PAST, PRESENT = "past_key_values.", "present."  # how names of keys and values begin, as in other tools' exports
# What transformers calls them, in arguments and outputs: "past_key_values" before 5.24.
_ARGUMENTS = signature(GenerationMixin.prepare_inputs_for_generation).parameters
CACHE = "cache" if "cache" in _ARGUMENTS else "past_key_values"
PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")
Tensors = dict[str, Tensor]


def require_onnx() -> None:
    """Refuse in good time what needs the packages of the `onnx` extra.

    Raises:
        UserError: If one is missing.
    """
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise UserError(f"ONNX needs {', '.join(missing)}", fix="pip install 'distillkit[onnx]'")


@dataclass(frozen=True)
class Graph:
    """A graph that can be run.

    Attributes:
        session: Of ONNX Runtime; on the GPU where it can, with as many CPU threads as torch uses.
    """

    session: Any

    @classmethod
    def load(cls, path: Path) -> Graph:
        """Load a graph from its file."""
        require_onnx()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 4  # errors are raised
        options.add_session_config_entry("session.force_spinning_stop", "1")  # idle threads leave the cores to others
        available = onnxruntime.get_available_providers()
        providers = [provider for provider in PROVIDERS if provider in available]
        return cls(onnxruntime.InferenceSession(path, options, providers=providers))

    @property
    def metadata(self) -> dict[str, str]:
        """What the export noted down in the file."""
        return self.session.get_modelmeta().custom_metadata_map

    @property
    def caches(self) -> bool:
        """Whether the graph takes keys and values of earlier positions."""
        return any(entry.name.startswith(PAST) for entry in self.session.get_inputs())

    def run(self, tensors: Mapping[str, Tensor], wanted: list[str] | None = None) -> Tensors:
        """Run the graph on what it takes of the tensors; outputs are on the CPU.

        Args:
            tensors: By the names of the graph's inputs; more than it takes do no harm.
            wanted: Names of outputs; None for all.
        """
        fed = {entry.name: tensors[entry.name].cpu().numpy() for entry in self.session.get_inputs()}
        names = wanted or [entry.name for entry in self.session.get_outputs()]
        return dict(zip(names, map(torch.from_numpy, self.session.run(names, fed)), strict=True))

    def empty(self, rows: int) -> Tensors:
        """Return the keys and values of no position: float32 `[rows, heads, 0, width]` by name."""
        return {
            entry.name: torch.zeros(rows, entry.shape[1], 0, entry.shape[3])
            for entry in self.session.get_inputs()
            if entry.name.startswith(PAST)
        }


def as_past(outputs: Mapping[str, Tensor]) -> Tensors:
    """Return the keys and values among a graph's outputs, named as the next call takes them."""
    return {PAST + name.removeprefix(PRESENT): values for name, values in outputs.items() if name.startswith(PRESENT)}
