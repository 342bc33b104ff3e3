"""Bit packing against Python's own integers."""

from __future__ import annotations

import numpy as np
import pytest

from distillkit.cache.bits import pack, unpack


def by_hand(numbers: list[int], bits: int) -> bytes:
    """One large integer, the first number lowest, written little-endian."""
    whole = sum(number << (bits * place) for place, number in enumerate(numbers))
    return whole.to_bytes((len(numbers) * bits + 7) // 8, "little")


@pytest.mark.parametrize("bits", range(1, 33))
def test_rows_are_large_integers_and_come_back(bits):
    source = np.random.default_rng(bits)
    counts = source.integers(0, 40, size=12)
    counts[[0, 5, 11]] = 0
    values = source.integers(0, 1 << bits, size=counts.sum(), dtype=np.uint64)
    values[:2] = 0, (1 << bits) - 1
    rows = pack(values, bits, counts)
    parts = np.split(values, np.cumsum(counts)[:-1])
    assert rows == [by_hand([int(number) for number in part], bits) for part in parts]
    assert (unpack(rows, bits, counts) == values).all()
    order = source.permutation(len(rows))
    shuffled = unpack([rows[row] for row in order], bits, counts[order])
    assert (shuffled == np.concatenate([parts[row] for row in order])).all()


def test_nothing_is_something():
    assert pack(np.zeros(0, dtype=np.uint32), 17, np.zeros(0, dtype=np.int64)) == []
    assert pack(np.zeros(0, dtype=np.uint32), 17, np.zeros(2, dtype=np.int64)) == [b"", b""]
    assert len(unpack([b"", b""], 17, np.zeros(2, dtype=np.int64))) == 0


@pytest.mark.parametrize("row", [b"", b"123", b"12345"])
@pytest.mark.parametrize("bits", [16, 17])
def test_a_row_of_another_length_is_refused(row, bits):
    with pytest.raises(ValueError, match=r"row 1 has \d bytes, and its 2 numbers need [45]"):
        unpack([b"12345"[: 4 + (bits == 17)], row + b"x" * (bits == 17) * (len(row) == 5)], bits, np.array([2, 2]))
