"""Noise on bytes, drawn from its exact law.

Noise that is independent for each value of an 8-bit image is a 256 x 256 table: the probability of
every new value given the old one, clipping and rounding included. A draw from a row of the table
takes one random number and one look-up by the alias method (Walker 1974, Vose 1991), whatever the
law is; probabilities are kept to 2^-24.
"""

from __future__ import annotations

from math import erf, exp, lgamma, log, sqrt

import numpy as np
from numba import njit, vectorize
from numpy.typing import NDArray

from .fast_random import bits

_ONE = 1 << 24
_EDGES = (np.arange(255) + 0.5) / 255  # between a value and the next


def normal_law(mean: NDArray, sd: float) -> NDArray[np.float64]:
    """(R, 256) probability of each byte for means (R,) in 0..1 plus N(0, sd), rounded, clipped."""
    if sd == 0:
        return exact_law(mean)
    distance = (_EDGES - np.asarray(mean, np.float64)[:, None]) / sd
    return _from_cdf(np.asarray(_normal_cdf(distance)))


def uniform_law(mean: NDArray, reach: float) -> NDArray[np.float64]:
    """(R, 256) as :func:`normal_law`, plus U(-reach, reach)."""
    if reach == 0:
        return exact_law(mean)
    mean = np.asarray(mean, np.float64)[:, None]
    return _from_cdf(np.clip((_EDGES - mean + reach) / (2 * reach), 0, 1))


def impulse_law(amount: float) -> NDArray[np.float64]:
    """(256, 256): a share ``amount`` of values becomes 0 or 255, each half of the time."""
    law = np.eye(256) * (1 - amount)
    law[:, [0, 255]] += amount / 2
    return law


def poisson_normal_law(mean: NDArray, photons: float, sd: float) -> NDArray[np.float64]:
    """(R, 256): Poisson(mean * photons) / photons, then N(0, sd), for means (R,) in 0..1.

    Shot noise of a sensor that counts ``photons`` at full brightness, then its read-out noise.
    """
    rate = np.asarray(mean, np.float64) * photons
    most = rate.max(initial=0.0)
    counts = np.arange(int(most + 12 * sqrt(most + 1)) + 12)
    return _poisson(counts[None], rate[:, None]) @ normal_law(counts / photons, sd)


def exact_law(mean: NDArray) -> NDArray[np.float64]:
    """(R, 256) for no noise at all."""
    law = np.zeros((len(mean), 256))
    law[np.arange(len(mean)), np.round(np.clip(mean, 0, 1) * 255).astype(int)] = 1
    return law


@vectorize(["float64(float64)"], cache=True)
def _normal_cdf(x):
    return 0.5 * (1 + erf(x / sqrt(2.0)))


@vectorize(["float64(int64, float64)"], cache=True)
def _poisson(count, rate):
    if rate <= 0:
        return 1.0 if count == 0 else 0.0
    return exp(count * log(rate) - rate - lgamma(count + 1.0))


def _from_cdf(below: NDArray) -> NDArray[np.float64]:
    ends = np.zeros((len(below), 1))
    return np.diff(np.concatenate([ends, below, ends + 1], 1), axis=1)


@njit(cache=True, nogil=True)
def alias_table(law):
    """(256, 256) probabilities -> (256, 256) uint32, a threshold of 24 bits and another byte."""
    table = np.empty((256, 256), np.uint32)
    share, small, large = np.empty(256), np.empty(256, np.int64), np.empty(256, np.int64)
    for row in range(256):
        share[:] = law[row] * (256 / law[row].sum())
        num_small = num_large = 0
        for k in range(256):
            if share[k] < 1:
                small[num_small] = k
                num_small += 1
            else:
                large[num_large] = k
                num_large += 1
        while num_small and num_large:
            low, high = small[num_small - 1], large[num_large - 1]
            table[row, low] = np.uint32(min(int(share[low] * _ONE + 0.5), _ONE - 1)) << 8 | high
            share[high] -= 1 - share[low]
            num_small -= 1
            if share[high] < 1:
                small[num_small] = high
                num_small += 1
                num_large -= 1
        for k in range(num_large):
            table[row, large[k]] = np.uint32(_ONE - 1) << 8 | large[k]
        for k in range(num_small):  # left over by rounding only
            table[row, small[k]] = np.uint32(_ONE - 1) << 8 | small[k]
    return table


def draw_bytes(
    image: NDArray[np.uint8], table: NDArray[np.uint32], key: np.uint64
) -> NDArray[np.uint8]:
    """An image of new values, each drawn from the row of its old one in an ``alias_table``."""
    changed = np.empty(image.shape, np.uint8)
    _draw(np.ascontiguousarray(image).ravel(), table.ravel(), key, changed.ravel())
    return changed


@njit(cache=True, nogil=True)
def _draw(old, table, key, new):
    low, byte = np.uint64(0xFFFFFFFF), np.uint32(255)
    for pair in range((len(old) + 1) // 2):
        both = bits(key, pair)
        for half in range(2):
            i = 2 * pair + half
            if i < len(old):
                word = np.uint32(both >> np.uint64(32)) if half else np.uint32(both & low)
                column = word & byte
                entry = table[np.int64(old[i]) * 256 + np.int64(column)]
                # The 24 bits that did not choose the column against the threshold.
                new[i] = (
                    column if (word >> np.uint32(8)) < (entry >> np.uint32(8)) else entry & byte
                )
