"""Load models with nothing but transformers or ONNX Runtime, and let them answer: `python fresh.py REQUEST ANSWER`.

A script of its own, which does not import distillkit: what loads here loads everywhere.

The request is JSON: a list of {"folder", "loader", "inputs", "outputs"}, the loader an Auto class of transformers or
the name of a graph, the inputs a safetensors file, the outputs names. The answer, in safetensors: "INDEX.output" →
values; beside it, in .json, INDEX → why a model did not answer.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file


def main(request: Path, answer: Path) -> None:
    """Answer a request."""
    found: dict[str, Any] = {}
    failed: dict[int, str] = {}
    asked = json.loads(request.read_text(encoding="utf-8"))
    torch.set_num_threads(asked["threads"])
    for index, entry in enumerate(asked["models"]):
        run = _graph if entry["loader"].endswith(".onnx") else _transformers
        try:
            values = run(entry, load_file(entry["inputs"]))
        except Exception as error:
            failed[index] = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
        else:
            found |= {f"{index}.{name}": values[name].float().contiguous() for name in entry["outputs"]}
    save_file(found, answer)
    answer.with_suffix(".json").write_text(json.dumps(failed), encoding="utf-8")


@torch.no_grad()
def _transformers(entry: dict[str, Any], inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    import transformers

    transformers.utils.logging.set_verbosity_error()
    gguf = next((path.name for path in Path(entry["folder"]).glob("*.gguf")), None)
    load = getattr(transformers, entry["loader"]).from_pretrained
    model = load(entry["folder"], dtype="auto", gguf_file=gguf).eval()
    outputs = model(**inputs)
    return {name: outputs[name] for name in entry["outputs"]}


def _graph(entry: dict[str, Any], inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(Path(entry["folder"]) / entry["loader"], options)
    names = [given.name for given in session.get_inputs()]
    values = session.run(entry["outputs"], {name: inputs[name].numpy() for name in names})
    return {name: torch.from_numpy(value) for name, value in zip(entry["outputs"], values, strict=True)}


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
