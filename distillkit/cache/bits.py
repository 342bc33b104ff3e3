"""Numbers of few bits, packed without gaps: from the lowest bit of the first byte up, each row beginning a new byte."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

WIDEST = 32  # bits of a number


def pack(values: np.ndarray, bits: int, counts: np.ndarray) -> list[bytes]:
    """Pack the numbers of successive rows.

    Args:
        values: Unsigned integers below 2^bits, flat.
        bits: Of each, at most `WIDEST`.
        counts: How many each row has.

    Returns:
        The bytes of each row; zeros fill the last one.
    """
    ends = np.cumsum(counts)
    if bits in (8, 16, 32):
        size = bits // 8
        plain = values.astype(f"<u{size}").tobytes()
        return [plain[(end - count) * size : end * size] for end, count in zip(ends, counts, strict=True)]
    sizes = -(-counts * bits // 8)
    starts = np.repeat(8 * (np.cumsum(sizes) - sizes), counts)  # of a number's row, in bits
    starts += bits * (np.arange(len(values)) - np.repeat(ends - counts, counts))
    flat = np.zeros(int(sizes.sum()) + 8, dtype=np.uint8)
    shifted = values.astype(np.uint64) << (starts & 7).astype(np.uint64)
    for byte in range((bits + 14) // 8):
        # Numbers that share a byte have different bits of it, so adding is putting together.
        part = (shifted >> np.uint64(8 * byte)).astype(np.uint8)
        np.add.at(flat, (starts >> 3) + byte, part)
    whole = flat.tobytes()
    return [whole[end - size : end] for end, size in zip(np.cumsum(sizes), sizes, strict=True)]


def unpack(rows: Sequence[bytes], bits: int, counts: np.ndarray) -> np.ndarray:
    """Return the numbers of successive rows, flat; uint32 or narrower.

    Raises:
        ValueError: If a row has fewer or more bytes than its numbers need.
    """
    sizes = -(-counts * bits // 8)
    found = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
    if not np.array_equal(found, sizes):
        row = int((found != sizes).argmax())
        raise ValueError(f"row {row} has {found[row]} bytes, and its {counts[row]} numbers need {sizes[row]}")
    if bits in (8, 16, 32):
        return np.frombuffer(b"".join(rows), dtype=f"<u{bits // 8}")
    flat = np.frombuffer(b"".join([*rows, b"\0" * 8]), dtype=np.uint8)
    starts = np.repeat(8 * (np.cumsum(sizes) - sizes), counts)
    starts += bits * (np.arange(len(starts)) - np.repeat(np.cumsum(counts) - counts, counts))
    first, value = starts >> 3, np.zeros(len(starts), dtype=np.uint64)
    for byte in range((bits + 14) // 8):
        value |= flat[first + byte].astype(np.uint64) << np.uint64(8 * byte)
    value >>= (starts & 7).astype(np.uint64)
    return (value & np.uint64((1 << bits) - 1)).astype(np.uint32)
