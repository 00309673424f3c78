"""Random numbers inside compiled loops: the n-th number of a key, whatever the order or thread."""

from __future__ import annotations

import numpy as np
from numba import njit

_STEP = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_30, _27, _31 = np.uint64(30), np.uint64(27), np.uint64(31)


def draw_key(random: np.random.Generator) -> np.uint64:
    """A key for :func:`bits`."""
    return np.uint64(random.integers(2**64, dtype=np.uint64))


@njit(inline="always", nogil=True)
def bits(key, n):
    """64 random bits, the n-th of the key (SplitMix64: Steele, Lea and Flood, OOPSLA 2014)."""
    z = key + (np.uint64(n) + np.uint64(1)) * _STEP
    z = (z ^ (z >> _30)) * _MIX_1
    z = (z ^ (z >> _27)) * _MIX_2
    return z ^ (z >> _31)
