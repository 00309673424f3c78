"""Snow in front of a camera."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numba import njit
from numpy.typing import NDArray

from .image_blur import line_blur
from .sensors import CameraContext, CameraStep


@dataclass(frozen=True)
class ImageSnow(CameraStep):
    """White streaks over a paled image (imagecorruptions' snow).

    The layer of flakes: N(mean, sd) per pixel, its middle enlarged by ``zoom``, values below the
    threshold set to 0, blurred along a line at -135 to -45 degrees. With
    x' = gain (mix x + (1 - mix) max(x, 1.5 grey(x) + 0.5)), the result is
    clip(x' + layer + the layer turned by 180 degrees, 0, 1).

    Levels 1 to 5 (mean, zoom, threshold, radius, sigma, mix), sd 0.3: (0.1, 3, 0.5, 10, 4, 0.8),
    (0.2, 2, 0.5, 12, 4, 0.7), (0.55, 4, 0.9, 12, 8, 0.7), (0.55, 4.5, 0.85, 12, 8, 0.65),
    (0.55, 2.5, 0.85, 12, 12, 0.55). RoboBEV uses 1 to 3, nuScenes-C all. MultiCorrupt has
    (0.3, 5, 0.90, 7, 7, 0.90), (0.4, 4, 0.85, 8, 8, 0.85), (0.5, 3, 0.80, 10, 10, 0.80), gain 0.9.

    Args:
        mean: of the layer before the threshold.
        zoom: enlargement of the flakes.
        threshold: below which there is no flake.
        radius: the streaks' half length, pixels; see :func:`image_blur.line_blur`.
        sigma: of the streaks' fading, pixels.
        mix: share of the image that is not paled.
        sd: standard deviation of the layer.
        gain: of the image under the flakes.
    """

    mean: float
    zoom: float
    threshold: float
    radius: int
    sigma: float
    mix: float
    sd: float = 0.3
    gain: float = 1.0

    def corrupt(self, image: NDArray[np.uint8], context: CameraContext) -> NDArray[np.uint8]:
        """See :class:`CameraStep`."""
        height, width = image.shape[:2]
        layer = self.layer(height, width, context.random())
        mix, gain = np.float32(self.mix), np.float32(self.gain)
        return _snowed(np.ascontiguousarray(image), layer, mix, gain)

    def layer(self, height: int, width: int, random: np.random.Generator) -> NDArray[np.uint8]:
        """(H, W) flakes, 0..255."""
        crop = (int(np.ceil(height / self.zoom)), int(np.ceil(width / self.zoom)))
        # Only the part that is enlarged is drawn.
        flakes = random.standard_normal(crop, np.float32) * np.float32(self.sd)
        flakes += np.float32(self.mean)
        flakes = cv2.resize(flakes, (width, height), interpolation=cv2.INTER_LINEAR)
        flakes = _quantised(flakes, np.float32(self.threshold))
        return line_blur(flakes, self.radius, self.sigma, float(random.uniform(-135, -45)))


@njit(cache=True, nogil=True)
def _quantised(layer, threshold):
    """0..255; what is below the threshold is 0."""
    quantised = np.zeros(layer.shape, np.uint8)
    for i in range(layer.shape[0]):
        for j in range(layer.shape[1]):
            if layer[i, j] >= threshold:
                value = min(max(layer[i, j], np.float32(0)), np.float32(1))
                quantised[i, j] = np.uint8(value * np.float32(255) + np.float32(0.5))
    return quantised


@njit(cache=True, nogil=True)
def _snowed(image, layer, mix, gain):
    rows, columns, _ = image.shape
    snowed = np.empty_like(image)
    pale, white, half = gain * (np.float32(1) - mix), np.float32(255), np.float32(0.5)
    keep = gain * mix
    for i in range(rows):
        for j in range(columns):
            r, g, b = (
                np.float32(image[i, j, 0]),
                np.float32(image[i, j, 1]),
                np.float32(image[i, j, 2]),
            )
            grey = np.float32(0.299) * r + np.float32(0.587) * g + np.float32(0.114) * b
            paled = np.float32(1.5) * grey + np.float32(127.5)
            flake = (
                np.float32(layer[i, j]) + np.float32(layer[rows - 1 - i, columns - 1 - j]) + half
            )
            for c in range(3):
                x = np.float32(image[i, j, c])
                snowed[i, j, c] = np.uint8(min(keep * x + pale * max(x, paled) + flake, white))
    return snowed
