"""Give the memory of finished work back, so that a long run does not hold what its largest stage needed."""

from __future__ import annotations

import ctypes

from accelerate.utils.memory import clear_device_cache


def release_memory() -> None:
    """Free what nothing refers to any more, on devices too, and let the C library return it to the system.

    glibc keeps freed blocks for itself: after a training, several times the size of the model.
    """
    clear_device_cache(garbage_collection=True)
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc alone
    if trim is not None:
        trim(0)
