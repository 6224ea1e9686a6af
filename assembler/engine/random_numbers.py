"""Uniform random numbers that are a function of (seed, stream, position): nothing to carry along.

Philox4x32-10 of "Parallel Random Numbers: As Easy as 1, 2, 3" (Salmon et al., 2011). A sequence
gets the same numbers in every batch, on every device, after a preemption and in another process.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_ROUNDS = 10
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)


def philox(counter: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Four random words [4, N] for each counter [4, N] and key [2, N]; 32-bit words in uint64."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for number in range(_ROUNDS):
        if number:
            k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
        first, second = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c2 = (second >> _SHIFT) ^ c1 ^ k0, (first >> _SHIFT) ^ c3 ^ k1
        c1, c3 = second & _LOW, first & _LOW
    return np.stack([c0, c1, c2, c3])


def uniforms(seeds: Sequence[int], streams: Sequence[int], positions: Sequence[int]) -> list[float]:
    """A number in [0, 1), of 53 random bits, for each seed (below 2^64), stream and position."""
    seed = np.array(seeds, dtype=np.uint64)
    counter = np.zeros((4, len(seed)), dtype=np.uint64)
    counter[0], counter[1] = positions, streams
    high, low, *_ = philox(counter, np.stack([seed & _LOW, seed >> _SHIFT]))
    bits = (high >> np.uint64(5) << np.uint64(26)) | (low >> np.uint64(6))
    return (bits * 2.0**-53).tolist()
