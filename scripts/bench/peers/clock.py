"""What every script of a peer times: the training itself, without imports, loading and saving."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def clock(output: str) -> Iterator[None]:
    """Write the seconds of a block, by the clock and of all CPUs, to `output/clock.json`."""
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    taken = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    Path(output).mkdir(parents=True, exist_ok=True)
    (Path(output) / "clock.json").write_text(json.dumps(taken), encoding="utf-8")
