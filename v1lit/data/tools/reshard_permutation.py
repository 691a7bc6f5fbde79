"""A permutation of any number of things that is computed, not stored."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

ROUNDS = 8


class Permutation:
    """A bijection of 0 ... size - 1 that depends on `seed` and `size` alone; it takes no memory.

    A Feistel network permutes the next power of four: the number is split into two halves of bits, and in
    turn each half is changed by a hash of the other, which can be undone whatever the hash does. What falls
    outside of `size` goes through the network again until it falls inside, at most four times on average.
    """

    def __init__(self, seed: int, size: int) -> None:
        self.size = size
        self._half = np.uint64(max(1, ((max(size, 2) - 1).bit_length() + 1) // 2))
        self._mask = np.uint64((1 << int(self._half)) - 1)
        self._keys = np.random.SeedSequence([seed, size]).generate_state(ROUNDS, np.uint64)

    def __call__(self, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """What stands at `positions` `[n]`, all of them 0 ... size - 1."""
        places = self._network(positions.astype(np.uint64))
        outside = np.flatnonzero(places >= self.size)
        while len(outside):
            places[outside] = self._network(places[outside])
            outside = outside[places[outside] >= self.size]
        return places.astype(np.int64)

    def _network(self, numbers: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        left, right = numbers >> self._half, numbers & self._mask
        for key in self._keys:
            left, right = right, left ^ (_hash(right ^ key) & self._mask)
        return (left << self._half) | right


def _hash(numbers: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Mixes all bits of each number: multiplications carry upwards, shifts downwards."""
    for multiplier in (0xBF58476D1CE4E5B9, 0x94D049BB133111EB):
        numbers = (numbers ^ (numbers >> np.uint64(31))) * np.uint64(multiplier)
    return numbers ^ (numbers >> np.uint64(32))
