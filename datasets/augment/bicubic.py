"""Pillow's bicubic resize, bit by bit, without Pillow.

Resampling is part of a trained model: the published BEVFusion saw images that Pillow had resized.
Its filter is the cubic with a = -0.5, widened by the reduction; both passes are in integers, the
columns first, with 22 bits after the point and 8-bit pixels in between (Pillow's ``Resample.c``;
the arithmetic has not changed since version 3).
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

BITS = 22  # after the point, of the weights


def resize_bicubic(
    image: NDArray[np.uint8], size: tuple[int, int], window: tuple[int, int, int, int]
) -> NDArray[np.uint8]:
    """A window of the resized image; what lies outside of it is black.

    Args:
        image: (H, W, 3).
        size: width and height of the whole resized image.
        window: left, top, right, bottom in pixels of the resized image.

    Returns:
        (bottom - top, right - left, 3).
    """
    left, top, right, bottom = window
    out = np.zeros((bottom - top, right - left, 3), np.uint8)
    x0, x1 = max(left, 0), min(right, size[0])
    y0, y1 = max(top, 0), min(bottom, size[1])
    if x0 < x1 and y0 < y1:
        columns = _weights(image.shape[1], size[0], x0, x1)
        rows = _weights(image.shape[0], size[1], y0, y1)
        out[y0 - top : y1 - top, x0 - left : x1 - left] = _resample(
            np.ascontiguousarray(image), *columns, *rows
        )
    return out


def _weights(
    length: int, new_length: int, start: int, stop: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First input pixel (n,) and integer weights (n, taps) of the new pixels start to stop."""
    scale = length / new_length
    reduction = max(scale, 1.0)
    support = 2.0 * reduction
    center = (np.arange(start, stop) + 0.5) * scale
    # int, as in Pillow: both are clipped to the image, so that it is a floor.
    first = np.maximum((center - support + 0.5).astype(np.int64), 0)
    last = np.minimum((center + support + 0.5).astype(np.int64), length)
    taps = np.arange(int(np.ceil(support)) * 2 + 1)
    x = np.abs((taps + first[:, None] - center[:, None] + 0.5) / reduction)
    near = ((1.5 * x) - 2.5) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * -0.5
    weight = np.where(x < 1, near, np.where(x < 2, far, 0.0))
    weight = np.where(first[:, None] + taps < last[:, None], weight, 0.0)
    weight /= weight.sum(1, keepdims=True)
    return first, np.trunc(weight * (1 << BITS) + np.copysign(0.5, weight)).astype(np.int64)


@njit(cache=True, nogil=True)
def _resample(image, column_first, column_weight, row_first, row_weight):
    """Columns, then rows; rows that no result needs are left out."""
    height, width = image.shape[0], image.shape[1]
    low = row_first[0]
    high = min(row_first[-1] + row_weight.shape[1], height)
    half = 1 << (BITS - 1)
    middle = np.empty((high - low, len(column_first), 3), np.uint8)
    for y in range(high - low):
        for x in range(len(column_first)):
            r, g, b = half, half, half
            for t in range(column_weight.shape[1]):
                weight = column_weight[x, t]
                if weight != 0:
                    place = min(column_first[x] + t, width - 1)
                    r += image[low + y, place, 0] * weight
                    g += image[low + y, place, 1] * weight
                    b += image[low + y, place, 2] * weight
            middle[y, x, 0] = min(max(r >> BITS, 0), 255)
            middle[y, x, 1] = min(max(g >> BITS, 0), 255)
            middle[y, x, 2] = min(max(b >> BITS, 0), 255)
    out = np.empty((len(row_first), len(column_first), 3), np.uint8)
    for y in range(len(row_first)):
        for x in range(len(column_first)):
            r, g, b = half, half, half
            for t in range(row_weight.shape[1]):
                weight = row_weight[y, t]
                if weight != 0:
                    place = row_first[y] + t - low
                    r += middle[place, x, 0] * weight
                    g += middle[place, x, 1] * weight
                    b += middle[place, x, 2] * weight
            out[y, x, 0] = min(max(r >> BITS, 0), 255)
            out[y, x, 1] = min(max(g >> BITS, 0), 255)
            out[y, x, 2] = min(max(b >> BITS, 0), 255)
    return out
