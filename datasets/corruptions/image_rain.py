"""Rain in front of a camera."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numba import njit
from numpy.typing import NDArray

from .fast_random import bits, draw_key
from .sensors import CameraContext, CameraStep


@dataclass(frozen=True)
class ImageRain(CameraStep):
    """Streaks of falling drops, brighter than what is behind them.

    Drops are strewn over an image reduced by 1 - size (as imgaug does, which nuScenes-C uses),
    enlarged, smeared over the way they fall during the exposure, and laid over the image as light:
    x' = x + (1 - x) opacity streak. nuScenes-C: density 0.01-0.06, 0.06-0.10, 0.10-0.15,
    0.15-0.20, 0.20-0.25; drop size 0.4-0.6; angle -15..15 degrees; speed 0.04-0.20.

    Args:
        density: smallest and largest share of the reduced image's pixels that hold a drop.
        size: smallest and largest size of drops.
        degrees: smallest and largest angle to the vertical.
        speed: smallest and largest length of a streak, of the image's height.
        opacity: of a streak through a whole drop.
    """

    density: tuple[float, float]
    size: tuple[float, float] = (0.4, 0.6)
    degrees: tuple[float, float] = (-15.0, 15.0)
    speed: tuple[float, float] = (0.04, 0.20)
    opacity: float = 0.8

    def corrupt(self, image: NDArray[np.uint8], context: CameraContext) -> NDArray[np.uint8]:
        """See :class:`CameraStep`."""
        height, width = image.shape[:2]
        streaks = self.streaks(height, width, context.random())
        return _rained(np.ascontiguousarray(image), streaks, np.float32(self.opacity))

    def streaks(self, height: int, width: int, random: np.random.Generator) -> NDArray[np.uint8]:
        """(H, W) share of light that streaks cover, 0..255; 255 is as much as one drop can."""
        density, size, degrees, speed = (
            float(random.uniform(*span))
            for span in (self.density, self.size, self.degrees, self.speed)
        )
        length = max(3, round(speed * height))
        slope = np.tan(np.deg2rad(degrees))
        # Streaks are made upright on a canvas that covers the image after it is sheared.
        margin = int(np.ceil(abs(slope) * height / 2)) + 1
        canvas = (height + 2 * length, width + 2 * margin)
        shrink = 1 - size
        reduced = (max(1, round(canvas[0] * shrink)), max(1, round(canvas[1] * shrink)))
        drops = np.zeros(reduced, np.uint8)
        # A streak passes over many rows: drops are thinned so that they are told apart.
        _strew(drops, density / (1 + shrink * length * 0.25), draw_key(random))
        drops = cv2.resize(drops, canvas[::-1], interpolation=cv2.INTER_LINEAR)
        smeared = cv2.blur(drops, (1, length), borderType=cv2.BORDER_CONSTANT)
        # One drop, of 1 / shrink rows, is left with this share of its light in every row.
        gain = min(length * shrink, 255.0)
        smeared = cv2.convertScaleAbs(smeared, alpha=gain * 0.6)
        matrix = np.array([[1, -slope, slope * height / 2 - margin], [0, 1, -length]])
        return np.asarray(cv2.warpAffine(smeared, matrix, (width, height)), np.uint8)


@njit(cache=True, nogil=True)
def _strew(drops, share, key):
    """Set a share of all values to 96 .. 255."""
    limit, flat = np.uint64(share * (1 << 24)), drops.ravel()
    for n in range(len(flat)):
        number = bits(key, n)
        if (number >> np.uint64(40)) < limit:
            flat[n] = np.uint8(96) + np.uint8(
                (number & np.uint64(0xFF)) * np.uint64(159) >> np.uint64(8)
            )


@njit(cache=True, nogil=True)
def _rained(image, streaks, opacity):
    rained = np.empty_like(image)
    for i in range(image.shape[0]):
        for j in range(image.shape[1]):
            share = np.float32(streaks[i, j]) * (opacity / np.float32(255))
            for c in range(3):
                x = np.float32(image[i, j, c])
                rained[i, j, c] = np.uint8(x + (np.float32(230) - x) * share + np.float32(0.5))
    return rained
