"""Blur of moving cameras."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numba import njit
from numpy.typing import NDArray

from .sensors import CameraContext, CameraStep

FRONT_AND_BACK = ("CAM_FRONT", "CAM_BACK")
_ONE = 1 << 16


@dataclass(frozen=True)
class LineBlur(CameraStep):
    """A trail to one side of every point, fading as half a Gaussian; a new angle for every image.

    2 radius + 1 taps, moved by whole pixels; edge pixels go on outside the image.
    MultiCorrupt: radius 15, sigma 6, 10, 13. RoboBEV: (15, 5), (15, 12), (20, 15).

    Args:
        radius: half the number of taps, pixels.
        sigma: of the Gaussian, pixels.
        degrees: smallest and largest angle of the trail.
    """

    radius: int
    sigma: float
    degrees: tuple[float, float] = (-45.0, 45.0)

    def corrupt(self, image: NDArray[np.uint8], context: CameraContext) -> NDArray[np.uint8]:
        """See :class:`CameraStep`."""
        degrees = float(context.random().uniform(*self.degrees))
        return line_blur(image, self.radius, self.sigma, degrees)


def line_blur(
    image: NDArray[np.uint8], radius: int, sigma: float, degrees: float
) -> NDArray[np.uint8]:
    """Mean over i = 0 .. 2 radius of the image at i steps along the line, weighted by a Gaussian.

    Args:
        image: (H, W) or (H, W, 3).
        radius: half the number of steps.
        sigma: weights are exp(-i^2 / (2 sigma^2)).
        degrees: where the line points, from columns towards rows.
    """
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    weights = np.round(weights / weights.sum() * _ONE).astype(np.int64)
    weights[0] += _ONE - weights.sum()  # a plain image stays as it is
    # Halves are rounded down, as in imagecorruptions.
    down = np.ceil(steps * np.sin(np.deg2rad(degrees)) - 0.5).astype(np.int64)
    right = np.ceil(steps * np.cos(np.deg2rad(degrees)) - 0.5).astype(np.int64)
    before, left = max(-down.min(), 0), max(-right.min(), 0)
    after, beyond = max(down.max(), 0), max(right.max(), 0)
    edges = (int(before), int(after), int(left), int(beyond))
    padded = cv2.copyMakeBorder(image, *edges, cv2.BORDER_REPLICATE)
    flat = np.ascontiguousarray(padded).reshape(len(padded), -1)
    colours = 1 if image.ndim == 2 else image.shape[2]
    blurred = np.empty(image.shape, np.uint8)
    offset = (right + left) * colours
    _blur(flat, weights.astype(np.uint32), down + before, offset, blurred.reshape(len(image), -1))
    return blurred


@njit(cache=True, nogil=True)
def _blur(padded, weights, down, right, blurred):
    rows, columns = blurred.shape
    total = np.empty(columns, np.uint32)
    for row in range(rows):
        total[:] = 1 << 15
        for tap in range(len(weights)):
            weight, line, first = weights[tap], padded[row + down[tap]], right[tap]
            for column in range(columns):
                total[column] += weight * np.uint32(line[first + column])
        for column in range(columns):
            blurred[row, column] = total[column] >> np.uint32(16)


@dataclass(frozen=True)
class DrivingBlur(CameraStep):
    """What a moving vehicle does: front and back images flow outwards, side images sideways.

    nuScenes-C: zoom 0.02, 0.04, 0.06, 0.08, 0.10; line 16, 32, 48, 64, 80 pixels. Its pipeline
    step has the two kinds of cameras swapped.

    Args:
        zoom: largest magnification minus 1.
        line: length of the horizontal line, pixels of an image 1,600 wide.
        swapped: zoom the side images, draw lines in the others.
    """

    zoom: float
    line: int
    swapped: bool = False

    def is_identity(self) -> bool:
        """See :class:`CameraStep`."""
        return self.zoom == 0 and self.line <= 1

    def corrupt(self, image: NDArray[np.uint8], context: CameraContext) -> NDArray[np.uint8]:
        """See :class:`CameraStep`."""
        if (context.camera.name in FRONT_AND_BACK) is not self.swapped:
            return zoom_blur(image, self.zoom)
        return box_blur(image, self.line)


def box_blur(image: NDArray[np.uint8], line: int) -> NDArray[np.uint8]:
    """Mean over a horizontal line; its length is scaled with the width of the image."""
    length = max(1, round(line * image.shape[1] / 1600))
    return np.asarray(cv2.blur(image, (length, 1)), np.uint8)


def zoom_blur(image: NDArray[np.uint8], zoom: float, step: float = 0.005) -> NDArray[np.uint8]:
    """Mean of the image and of its magnifications 1, 1 + step, ... 1 + zoom about the middle."""
    height, width = image.shape[:2]
    total = image.astype(np.uint16) * 2  # magnification 1 is the image once more
    factors = _magnifications(zoom, step)
    for factor in factors:
        matrix = np.array(
            [
                [factor, 0, (1 - factor) * (width - 1) / 2],
                [0, factor, (1 - factor) * (height - 1) / 2],
            ]
        )
        magnified = cv2.warpAffine(image, matrix, (width, height), borderMode=cv2.BORDER_REPLICATE)
        cv2.add(total, magnified, dst=total, dtype=cv2.CV_16U)
    return np.asarray(cv2.convertScaleAbs(total, alpha=1 / (len(factors) + 2)), np.uint8)


@lru_cache(maxsize=16)
def _magnifications(zoom: float, step: float) -> tuple[float, ...]:
    return tuple(1 + step * k for k in range(1, round(zoom / step) + 1))
