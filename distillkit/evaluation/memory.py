"""Peak memory of models, each loaded and run in a short-lived process of its own, as the system counts it.

`python -m distillkit.evaluation.memory REQUEST ANSWER` is the process in between: it imports everything once and then
forks for each model, before any thread has started.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from distillkit.signals import Batch, Model, chunks

Loader = Callable[[], Model]


@dataclass(frozen=True)
class Memory:
    """What a process needed at most to load a model and answer one batch.

    Attributes:
        bytes: By which it grew from before loading; on a GPU, what torch had allocated there.
        process_bytes: Of the whole process, Python and its libraries included.
    """

    bytes: int
    process_bytes: int


def measure_memory(
    loaders: Mapping[str, Loader], batches: Mapping[str, Batch], preload: list[str] | None = None
) -> dict[str, Memory | str]:
    """Load each model in a process of its own and let it answer a batch.

    Args:
        loaders: Name → what loads the model; must be picklable.
        batches: Name → what the model answers.
        preload: Modules to import before the first measurement, so that no model is charged with them.

    Returns:
        What was measured, or why not.
    """
    if sys.platform == "win32":
        return dict.fromkeys(loaders, "not measured on Windows")
    with TemporaryDirectory(prefix="distillkit-") as folder:
        request, answer = Path(folder, "request"), Path(folder, "answer")
        asked = {name: batch.to(torch.device("cpu")) for name, batch in batches.items()}
        request.write_bytes(pickle.dumps((dict(loaders), asked, torch.get_num_threads(), preload or [])))
        env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        argv = [sys.executable, "-m", "distillkit.evaluation.memory", str(request), str(answer)]
        done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
        if not answer.exists():
            lines = done.stderr.strip().splitlines()
            return dict.fromkeys(loaders, lines[-1] if lines else f"the process ended with {done.returncode}")
        found = json.loads(answer.read_text(encoding="utf-8"))
    return {name: Memory(**value) if isinstance(value, dict) else value for name, value in found.items()}


def main(request: Path, answer: Path) -> None:
    """Fork for each model of a request, one after the other, and write what they needed."""
    loaders, batches, threads, preload = pickle.loads(request.read_bytes())
    for module in preload:
        import_module(module)
    found = {name: _forked(load, batches[name], threads) for name, load in loaders.items()}
    answer.write_text(json.dumps(found), encoding="utf-8")


def _forked(load: Loader, batch: Batch, threads: int) -> dict[str, int] | str:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        code = 1
        try:
            torch.set_num_threads(threads)
            os.write(writer, json.dumps(_measure(load, batch)).encode())
            code = 0
        except BaseException as error:
            os.write(writer, json.dumps(f"{type(error).__name__}: {error}"[:500]).encode())
        finally:
            os._exit(code)  # at once: nothing of the parent's is to be cleaned up here
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    return json.loads(said) if said else f"ended with {os.waitstatus_to_exitcode(status)}, out of memory perhaps"


@torch.inference_mode()
def _measure(load: Loader, batch: Batch) -> dict[str, int]:
    torch.nn.TransformerEncoderLayer(8, 2, 16).eval()(torch.zeros(1, 8, 8))  # torch's own parts are charged to nobody
    before = _most()
    model = load()
    device = _device(model)
    logits = model(batch.to(device)).logits
    assert logits is not None
    for start, stop in chunks(len(logits), logits.classes):
        logits.rows(start, stop)
    peak = _most()
    grown = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak - before
    return {"bytes": grown, "process_bytes": peak}


def _device(model: Model) -> torch.device:
    return next(model.parameters()).device if isinstance(model, torch.nn.Module) else torch.device("cpu")


def _most() -> int:
    """Return the most bytes of memory that this process has held."""
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most  # Linux counts in KiB


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
