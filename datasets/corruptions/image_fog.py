"""Fog in images as the benchmarks have it: random clouds, which know no depth."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numba import njit
from numpy.typing import NDArray

from .fast_random import bits, draw_key
from .plasma import plasma
from .sensors import CameraContext, CameraStep


@dataclass(frozen=True)
class PlasmaFog(CameraStep):
    """A cloud laid over the image, as if the fog were a wall of varying density.

    x' = clip((x + weight P) m / (m + weight), 0, 1), m the brightest value of the image.
    imagecorruptions' levels, (weight, decay): (1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4);
    RoboBEV uses 2, 4, 5, nuScenes-C all five.

    Args:
        weight: of the cloud.
        decay: of the cloud's detail, see :func:`plasma.plasma`.
    """

    weight: float
    decay: float

    def is_identity(self) -> bool:
        """See :class:`CameraStep`."""
        return self.weight == 0

    def corrupt(self, image: NDArray[np.uint8], context: CameraContext) -> NDArray[np.uint8]:
        """See :class:`CameraStep`."""
        height, width = image.shape[:2]
        cloud = plasma(height, width, self.decay, context.random())
        return _covered(image, cloud, self.weight)


@dataclass(frozen=True)
class HazeFog(CameraStep):
    """MultiCorrupt's fog: three clouds, then a haze that grows with distance in pixels.

    The cloud is P1 (1 - 0.8 P2) (1 + 0.5 P3), laid over as in :class:`PlasmaFog`. The haze spares
    the rectangle of rows 0.65 H to 0.99 H and columns 0.10 W to 0.85 W, where the road is: with d0
    pixels to it, d = 2 d0 (1 + U(0, 1) / 4) + sqrt(max(H, W)), t = exp(-haze d), and
    x'' = x' t + 0.5 (1 - t). MultiCorrupt: weight 2, 3, 4, decay 1.7, haze 0.0005, 0.001, 0.002.

    Args:
        weight: of the cloud.
        haze: loss for each pixel of distance in an image 1,600 wide; d is counted in such pixels.
        decay: of the cloud's detail.
    """

    weight: float
    haze: float
    decay: float = 1.7

    def corrupt(self, image: NDArray[np.uint8], context: CameraContext) -> NDArray[np.uint8]:
        """See :class:`CameraStep`."""
        random, (height, width) = context.random(), image.shape[:2]
        first, second, third = (plasma(height, width, self.decay, random) for _ in range(3))
        distance, base = _distance_to_road(height, width)
        return _hazed(
            *(np.ascontiguousarray(image), first, second, third, distance),
            *(np.float32(self.weight), np.float32(self.haze), np.float32(base)),
            *(np.float32(image.max(initial=1) / 255), draw_key(random)),
        )


@lru_cache(maxsize=4)
def _distance_to_road(height: int, width: int) -> tuple[NDArray[np.float32], float]:
    """(H, W) pixels to the rectangle and sqrt(max(H, W)), in pixels of an image 1,600 wide."""
    scale = 1600 / width
    row, column = np.arange(height)[:, None], np.arange(width)[None]
    down = np.maximum(0.65 * height - row, row - 0.99 * height).clip(0)
    aside = np.maximum(0.10 * width - column, column - 0.85 * width).clip(0)
    base = np.sqrt(max(height, width) * scale)
    return (np.hypot(down, aside) * scale).astype(np.float32), float(base)


@njit(cache=True, nogil=True)
def _hazed(image, first, second, third, distance, weight, haze, base, brightest, key):
    one, half = np.float32(1), np.float32(0.5)
    gain = brightest / (brightest + weight)
    per_byte, unit = gain / np.float32(255), np.float32(1 / (1 << 16))
    fixed = np.exp(-haze * base)
    hazed = np.empty_like(image)
    rows, columns, _ = image.shape
    four = np.uint64(0)
    for i in range(rows):
        for j in range(columns):
            cloud = first[i, j] * (one - np.float32(0.8) * second[i, j])
            cloud *= (one + half * third[i, j]) * weight * gain
            if j % 4 == 0:  # a number has 16 bits for each of four pixels
                four = bits(key, i * columns + j)
            u = np.float32(four & np.uint64(0xFFFF)) * unit
            four >>= np.uint64(16)
            seen = fixed * _exp_of_minus(
                np.float32(2) * haze * distance[i, j] * (one + np.float32(0.25) * u)
            )
            veil = half * (one - seen)
            for c in range(3):
                covered = min(np.float32(image[i, j, c]) * per_byte + cloud, one)
                hazed[i, j, c] = np.uint8((covered * seen + veil) * np.float32(255) + half)
    return hazed


@njit(inline="always", nogil=True)
def _exp_of_minus(z):
    """exp(-z) for 0 <= z: (the series at z / 8) ** 8; error below 1e-5 up to z = 4."""
    x = z * np.float32(-0.125)
    s = np.float32(1) + x * (
        np.float32(1)
        + x * (np.float32(0.5) + x * (np.float32(1 / 6) + x * (np.float32(1 / 24) + x / 120)))
    )
    s *= s
    s *= s
    return s * s


@njit(cache=True, nogil=True)
def _cover(image, cloud, weight, brightest):
    half, white = np.float32(0.5), np.float32(255)
    gain = brightest / (brightest + weight)
    covered = np.empty_like(image)
    for i in range(image.shape[0]):
        for j in range(image.shape[1]):
            fog = cloud[i, j] * weight * gain * white + half
            for c in range(3):
                value = np.float32(image[i, j, c]) * gain + fog
                covered[i, j, c] = np.uint8(min(value, white))
    return covered


def _covered(image: NDArray[np.uint8], cloud: NDArray[np.float32], weight: float):
    brightest = np.float32(image.max(initial=1) / 255)
    return _cover(np.ascontiguousarray(image), cloud, np.float32(weight), brightest)
