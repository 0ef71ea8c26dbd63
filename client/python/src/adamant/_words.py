"""Whether an array is what it was, without a copy of it."""

from __future__ import annotations

import sys

import numpy as np

from adamant._arrays import Array

# Of each of so many 64-bit words of a parameter, again and again: odd, so that no change of one word goes unnoticed,
# and without a pattern, so that hardly any change of several does.
WORDS = 512
WEIGHTS = np.random.default_rng(0).integers(2**63, size=WORDS, dtype=np.uint64) * np.uint64(2) + np.uint64(1)


class Words:
    """The elements of an array as 64-bit words: whole rows, what is left, and the bytes that are left of that."""

    def __init__(self, array: Array) -> None:
        octets = array.reshape(-1).view(np.uint8)
        words = octets[: octets.size // 8 * 8].view(np.uint64)
        rows = words.size // WORDS
        self._rows = words[: rows * WORDS].reshape(rows, WORDS) if rows else None
        self._rest = words[rows * WORDS :]
        self._weights = WEIGHTS[: self._rest.size]
        self._tail = octets[words.size * 8 :] if octets.size % 8 else None

    def total(self) -> int:
        total = int(self._rest.dot(self._weights))
        if self._rows is not None:
            total += 3 * int(self._rows.sum(axis=0).dot(WEIGHTS))
        if self._tail is not None:
            total += 5 * int.from_bytes(self._tail.tobytes(), sys.byteorder)
        return total % 2**64
