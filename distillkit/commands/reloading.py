"""Does what `compress` wrote load again, and answer as what was written: here, and in a fresh process without us?"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from distillkit.compression import fresh
from distillkit.errors import CheckFailed
from distillkit.models.live import LiveModel
from distillkit.models.onnx import DECODER, GRAPH, OnnxModel
from distillkit.signals import ABSENT, Batch, Model

TOLERANCE = 1e-5  # of logits, or of the largest where that exceeds 1
HALF = 2e-2  # likewise, of half precision


@dataclass(frozen=True)
class Written:
    """A model that was written, and what it answers: what a fresh process shall find again."""

    folder: Path
    loader: str
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    tolerance: float


@torch.no_grad()
def remember(model: LiveModel | OnnxModel, example: Batch, folder: Path) -> Written:
    """Let a model answer some rows before its folder is loaded elsewhere."""
    names = list(model.task.output_names)
    if isinstance(model, OnnxModel):
        inputs = {name: tensor.contiguous() for name, tensor in model.fed(example.inputs).items()}
        loader = GRAPH if (folder / GRAPH).is_file() else DECODER
        return Written(folder, loader, inputs, model.outputs(example.inputs), TOLERANCE)
    found = model.model.eval()(**example.to(model.device).inputs)
    outputs = {name: found[name].float().cpu() for name in names}
    tolerance = TOLERANCE if model.model.dtype == torch.float32 else HALF
    inputs = {name: tensor.cpu().contiguous() for name, tensor in example.inputs.items()}
    return Written(folder, model.task.auto_class().__name__, inputs, outputs, tolerance)


def check_in_fresh_process(written: dict[str, Written]) -> None:
    """Load models in one new process with plain transformers or ONNX Runtime, and compare their answers.

    Raises:
        CheckFailed: If one does not load, or answers otherwise.
    """
    with TemporaryDirectory(prefix="distillkit-") as folder:
        request, answer = Path(folder, "request.json"), Path(folder, "answer.safetensors")
        models = []
        for index, entry in enumerate(written.values()):
            inputs = Path(folder, f"{index}.safetensors")
            save_file(entry.inputs, inputs)
            where = str(entry.folder.resolve())
            models.append({"folder": where, "loader": entry.loader, "inputs": str(inputs), "outputs": [*entry.outputs]})
        request.write_text(json.dumps({"threads": torch.get_num_threads(), "models": models}), encoding="utf-8")
        env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        argv = [sys.executable, "-P", str(fresh.__file__), str(request), str(answer)]
        done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = done.stderr.strip().splitlines()
            why = lines[-1] if lines else f"it ended with {done.returncode}"
            raise CheckFailed(f"a fresh process could not load what was written: {why}")
        failed = json.loads(answer.with_suffix(".json").read_text(encoding="utf-8"))
        found = load_file(answer)
    for index, (name, entry) in enumerate(written.items()):
        if str(index) in failed:
            raise CheckFailed(f"'{name}' does not load in a fresh process: {failed[str(index)]}")
        for output, expected in entry.outputs.items():
            _compare(found[f"{index}.{output}"], expected.float(), entry.tolerance, f"'{name}', in a fresh process,")


@torch.no_grad()
def check_reloaded(written: Model, loaded: Model, example: Batch, path: Path) -> None:
    """Compare the answers of a model with those of what was loaded from its folder.

    Raises:
        CheckFailed: If they differ.
    """
    expected, found = written(example).logits, loaded(example).logits
    assert expected is not None
    assert found is not None
    logits = expected.rows(0, len(expected)).float()
    _compare(found.rows(0, len(found)).float(), logits, TOLERANCE, f"what was loaded again from {path}")


def _compare(found: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    difference = float((found - expected).abs().max())
    if not difference <= tolerance * max(1.0, float(expected[expected > ABSENT / 2].abs().max())):
        raise CheckFailed(f"{what} differs by {difference:.2g} in its logits")
