"""Writing checkpoints: by every process its part, at once or while training goes on, and into place when all is there.

A checkpoint is written beside. Each process adds a list of its files' checksums; once there are as many lists as
processes, the main one joins them to the manifest, renames the folder into place and removes older checkpoints.
"""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from safetensors.torch import save_file
from torch import distributed, nn

from distillkit.data.sealed import checksum, sealed
from distillkit.training.checkpoint import MANIFEST, Progress, checkpoints, keep_best, random_state, step_of
from distillkit.training.sharding import is_sharded
from distillkit.training.states import (
    SHARDS,
    host_copies,
    optimizer_tensors,
    weights_of,
    write_shards,
    write_whole,
)

PATIENCE = 0.05  # seconds between looks for the other processes' lists


class Writer:
    """Write the checkpoints of a run.

    Args:
        folder: Of all of them.
        accelerator: Of the processes.
        keep: The newest so many are kept.
        background: Let training go on while files are written; it then waits for copies of the tensors only.
    """

    def __init__(self, folder: Path, accelerator: Accelerator, keep: int, background: bool = False) -> None:
        self.folder, self.accelerator, self.keep, self.background = folder, accelerator, keep, background
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._group: Any = None

    def save(self, trainee: nn.Module, optimizer: Any, progress: Progress, digest: str) -> Path:
        """Write `folder/step-NNNNNN`, whole or not at all, and remove all but the newest and those of later steps."""
        self.wait()
        target = self.folder / f"step-{progress.step:06d}"
        beside = self.folder / f".{target.name}.partial"
        if self.accelerator.is_main_process:
            shutil.rmtree(beside, ignore_errors=True)
            beside.mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        work = self._prepare(beside, trainee, optimizer, progress, digest)
        if self.background:
            self._thread = threading.Thread(target=self._work, args=(work, beside, target), daemon=True)
            self._thread.start()
            return target
        work()
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            self._complete(beside, target)
        self.accelerator.wait_for_everyone()
        return target

    def check(self) -> None:
        """Raise what the writing in the background met."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def wait(self) -> None:
        """Wait until the last checkpoint is in place in every process's eyes."""
        if self._thread is None:
            return
        self._thread.join()
        self._thread = None
        self.check()
        self.accelerator.wait_for_everyone()

    def _prepare(
        self, beside: Path, trainee: nn.Module, optimizer: Any, progress: Progress, digest: str
    ) -> Callable[[], None]:
        """Copy what changes while training goes on; return what writes this process's part."""
        accelerator, rank = self.accelerator, self.accelerator.process_index
        own = {**random_state(), "window_sums": progress.window_sums}
        own = host_copies(own, self.background)
        sharded, main = is_sharded(trainee), accelerator.is_main_process
        state = json.dumps(self._state(optimizer, progress, digest)) if main else None
        best = keep_best(self.folder, beside) if main and progress.best_step is not None else []
        weights = host_copies(weights_of(trainee), self.background) if sharded or main else {}
        moments = host_copies(optimizer_tensors(trainee, optimizer), self.background) if sharded or main else {}
        group = self._own_group() if sharded and self.background else None

        def work() -> None:
            files = [f"process-{rank}.safetensors", *best]
            save_file(own, beside / files[0])
            if sharded:
                write_shards(beside, weights | moments, group)
                files += [f"{SHARDS}/{path.name}" for path in (beside / SHARDS).glob(f"shard-{rank + 1:05d}-*")]
            elif main:
                files += write_whole(beside, weights, moments)
            if state is not None:
                (beside / "state.json").write_text(state, encoding="utf-8")
                files.append("state.json")
            listed = beside / f".sums-{rank}"
            listed.with_suffix(".partial").write_text(json.dumps({name: checksum(beside / name) for name in files}))
            listed.with_suffix(".partial").rename(listed)

        return work

    def _state(self, optimizer: Any, progress: Progress, digest: str) -> dict[str, Any]:
        accelerator = self.accelerator
        return {
            "step": progress.step,
            "digest": digest,
            "processes": accelerator.num_processes,
            "window_counts": progress.window_counts.tolist(),
            "best_step": progress.best_step,
            "best_value": progress.best_value,
            "patience": asdict(progress.patience),
            "place": None if progress.place is None else asdict(progress.place),
            "groups": optimizer.state_dict()["param_groups"],
            "scaler": None if accelerator.scaler is None else accelerator.scaler.state_dict(),
        }

    def _work(self, work: Callable[[], None], beside: Path, target: Path) -> None:
        """Do in the background what `save` does, without talking to the other processes."""
        try:
            work()
            if self.accelerator.is_main_process:
                while len(list(beside.glob(".sums-*[0-9]"))) < self.accelerator.num_processes:
                    time.sleep(PATIENCE)
                self._complete(beside, target)
        except BaseException as error:
            self._error = error

    def _complete(self, beside: Path, target: Path) -> None:
        lists = sorted(beside.glob(".sums-*[0-9]"))
        sums = {name: value for path in lists for name, value in json.loads(path.read_text()).items()}
        for path in lists:
            path.unlink()
        (beside / MANIFEST).write_text(json.dumps(sealed(dict(sorted(sums.items()))), indent=1), encoding="utf-8")
        shutil.rmtree(target, ignore_errors=True)
        beside.rename(target)
        earlier = [path for path in checkpoints(self.folder) if step_of(path) <= step_of(target)]
        for path in set(checkpoints(self.folder)) - set(earlier[-self.keep :]):
            shutil.rmtree(path)

    def _own_group(self) -> Any:
        """Return a way for the processes to talk that training does not use."""
        self._group = self._group or distributed.new_group(backend="gloo")
        return self._group
