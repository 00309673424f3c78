"""Random clouds by the diamond-square algorithm (Fournier, Fussell and Carpenter 1982)."""

from __future__ import annotations

from math import ceil, log2

import numpy as np
from numba import njit
from numpy.typing import NDArray

from .fast_random import bits, draw_key

_FIRST_STEP = 100.0


def plasma(
    height: int, width: int, decay: float, random: np.random.Generator
) -> NDArray[np.float32]:
    """(height, width) cloud: the corner of a map that spans 0..1.

    The map is a torus whose side is the next power of two. Every octave doubles it: the middle of
    four neighbours is their mean plus a * U(-a, a), first for squares, then for diamonds; a is
    100, divided by ``decay`` from octave to octave (as in imagecorruptions).

    The last octave is made for the window only, so the span is that of the octave before together
    with the window; what that misses is below 1e-3 of the span for decays from 1.4.
    """
    octaves = ceil(log2(max(height, width, 2)))
    cloud, low, high = np.zeros((1, 1), np.float32), 0.0, 0.0
    for octave in range(octaves):
        side = 2 * len(cloud)
        window = (height, width) if octave == octaves - 1 else (side, side)
        step = (_FIRST_STEP / decay**octave) ** 2
        cloud = _refined(cloud, np.float32(step), draw_key(random), *window)
        low, high = min(low, float(cloud.min())), max(high, float(cloud.max()))
        if octave < octaves - 2:
            low, high = float(cloud.min()), float(cloud.max())
    cloud -= np.float32(low)
    cloud *= np.float32(1 / max(high - low, 1e-30))
    return cloud


@njit(cache=True, nogil=True)
def _refined(coarse, step, key, height, width):
    """The first rows and columns of the map of twice the side."""
    side = len(coarse)
    rows, columns = (height + 1) // 2, (width + 1) // 2
    fine = np.empty((2 * rows, 2 * columns), np.float32)
    above, middle = np.empty(columns, np.float32), np.empty(columns + 1, np.float32)
    for i in range(-1, rows):
        upper, lower = coarse[i % side], coarse[(i + 1) % side]
        for j in range(-1, columns):  # squares; middle[j + 1] is to the lower right of (i, j)
            left, right = j % side, (j + 1) % side
            corners = upper[left] + upper[right] + lower[left] + lower[right]
            n = ((i + 1) * (side + 1) + j + 1) * 2
            middle[j + 1] = np.float32(0.25) * corners + step * _symmetric(bits(key, n))
        if i >= 0:
            for j in range(columns):  # diamonds
                number = bits(key, ((i + 1) * (side + 1) + j + 1) * 2 + 1)
                here, right = upper[j], upper[(j + 1) % side]
                level = here + right + above[j] + middle[j + 1]
                upright = here + lower[j] + middle[j] + middle[j + 1]
                first, second = _symmetric(number), _symmetric(number << np.uint64(32))
                fine[2 * i, 2 * j] = here
                fine[2 * i, 2 * j + 1] = np.float32(0.25) * level + step * first
                fine[2 * i + 1, 2 * j] = np.float32(0.25) * upright + step * second
                fine[2 * i + 1, 2 * j + 1] = middle[j + 1]
        above[:] = middle[1:]
    return fine[:height, :width].copy()


@njit(inline="always", nogil=True)
def _symmetric(number):
    """U(-1, 1) from the upper 24 bits."""
    return np.float32(np.int64(number >> np.uint64(40)) - (1 << 23)) * np.float32(1 / (1 << 23))
