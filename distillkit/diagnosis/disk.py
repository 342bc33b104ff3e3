"""How fast a folder's disk writes and reads, and what is free on it."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

SIZE = 64 << 20  # bytes


@dataclass(frozen=True)
class Disk:
    """What a folder lies on.

    Attributes:
        folder: That was asked for.
        tried: The folder itself, or the nearest one above it that exists.
        free: Bytes.
        write: Bytes a second, until they are on the disk; None if it failed.
        read: Bytes a second, of what was just written; from memory where the system cannot be told to forget it.
        problem: Why nothing can be written there.
    """

    folder: str
    tried: str
    free: int
    write: float | None = None
    read: float | None = None
    problem: str | None = None


def try_disk(folder: Path, size: int = SIZE) -> Disk:
    """Write a temporary file, read it and remove it; the folder is not made if it is not there."""
    tried = folder.absolute()
    while not tried.is_dir():
        tried = tried.parent
    free = shutil.disk_usage(tried).free
    about = (str(folder), str(tried), free)
    if free < 2 * size:
        return Disk(*about, problem="the disk is full")
    try:
        write, read = _measure(tried, size)
    except OSError as error:
        return Disk(*about, problem=error.strerror or str(error))
    return Disk(*about, write, read)


def _measure(folder: Path, size: int) -> tuple[float, float]:
    piece = os.urandom(min(size, 1 << 20))
    with tempfile.TemporaryFile(dir=folder, prefix=".distillkit-") as file:
        started = time.perf_counter()
        for _ in range(size // len(piece)):
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
        written = time.perf_counter()
        if sys.platform == "linux":
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        file.seek(0)
        began = time.perf_counter()
        while file.read(len(piece)):
            pass
        seconds = time.perf_counter() - began
    return size / (written - started), size / seconds
