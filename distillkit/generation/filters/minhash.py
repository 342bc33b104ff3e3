"""MinHash: how alike two texts are, from a few bytes of each."""

from __future__ import annotations

import numpy as np
import xxhash

from distillkit.generation.filters.words import hashes

BITS = 8  # of each minimum that are kept to estimate likeness
FOUND = 0.99  # share of pairs that are exactly as alike as the threshold which bands shall find


class MinHash:
    """Signatures of sets of hashes (Broder 1997) and their bands (locality-sensitive hashing).

    Two sets with Jaccard similarity J have the same minimum under one permutation with probability J. Of each minimum
    8 bits are kept (b-bit minwise hashing, Li & König 2010, arXiv:0910.3349): unequal minima then agree once in 256
    times, which `similarity` takes into account. A band is the hash of several whole minima: sets of which one band is
    equal are candidates.

    Args:
        threshold: J from which on two sets are found with a probability of at least `FOUND`.
        permutations: How many. The standard error of an estimate of J is √(J (1 - J) / permutations).
    """

    def __init__(self, threshold: float, permutations: int = 128) -> None:
        self.factors = hashes([f"factor {number}" for number in range(permutations)]) | np.uint64(1)
        self.offsets = hashes([f"offset {number}" for number in range(permutations)])
        self.bands, self.width = bands(threshold, permutations)

    def minima(self, hashed: np.ndarray) -> np.ndarray:
        """Return the smallest value of a set under each permutation: uint32 `[permutations]`.

        Args:
            hashed: The set: uint64 `[elements]`, at least one.
        """
        mixed = hashed[:, None] * self.factors + self.offsets  # modulo 2⁶⁴; the upper half is well mixed
        return (mixed.min(axis=0) >> np.uint64(32)).astype(np.uint32)

    def keys(self, minima: np.ndarray) -> np.ndarray:
        """Hash each band, together with its number: uint64 `[bands]`."""
        parts = minima[: self.bands * self.width].reshape(self.bands, self.width)
        digests = [xxhash.xxh3_64_intdigest(part.tobytes(), seed=band) for band, part in enumerate(parts)]
        return np.array(digests, dtype=np.uint64)

    @staticmethod
    def short(minima: np.ndarray) -> np.ndarray:
        """Return what is kept of minima: uint8 `[permutations]`."""
        return (minima & ((1 << BITS) - 1)).astype(np.uint8)

    @staticmethod
    def similarity(short: np.ndarray, others: np.ndarray) -> np.ndarray:
        """Estimate the Jaccard similarity of one set with others: float `[others]`.

        Args:
            short: uint8 `[permutations]`.
            others: uint8 `[others, permutations]`.
        """
        equal = (others == short).mean(axis=1)
        chance = 2.0**-BITS
        return (equal - chance) / (1 - chance)


def bands(threshold: float, permutations: int) -> tuple[int, int]:
    """Choose the number of bands and their width: the widest that find a pair at the threshold often enough.

    With r minima in each of b bands, a pair of similarity J shares a band with probability 1 - (1 - Jʳ)ᵇ.
    """
    for width in range(permutations, 1, -1):
        count = permutations // width
        if 1 - (1 - threshold**width) ** count >= FOUND:
            return count, width
    return permutations, 1
