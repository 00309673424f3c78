"""Wrong exposure and colours."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numba import njit
from numpy.typing import NDArray

from .sensors import CameraContext, CameraStep


@dataclass(frozen=True)
class Brighten(CameraStep):
    """Add to the value V = max(R, G, B) of every pixel in HSV; hue and saturation stay.

    MultiCorrupt: 0.5, 0.6, 0.7; RoboBEV: 0.2, 0.4, 0.5.

    Args:
        offset: added to V in 0..1, which is clipped.
    """

    offset: float

    def is_identity(self) -> bool:
        """See :class:`CameraStep`."""
        return self.offset == 0

    def corrupt(self, image: NDArray[np.uint8], context: CameraContext) -> NDArray[np.uint8]:
        """See :class:`CameraStep`."""
        return change_value(image, np.arange(256) / 255 + self.offset)


@dataclass(frozen=True)
class GreyVeil(CameraStep):
    """Blend with middle grey, then set the exposure by the brightest pixel.

    What nuScenes-C puts over snow and rain (grey 0.3, exposure 0.7) and fog (grey 0.1 to 0.5).

    Args:
        grey: share of grey 128.
        exposure: V = max(R, G, B) is scaled so that the largest becomes this, of 256; None to
            leave it.
    """

    grey: float
    exposure: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.grey <= 1:
            raise ValueError(f"grey is {self.grey:g}; give a share from 0 to 1")

    def is_identity(self) -> bool:
        """See :class:`CameraStep`."""
        return self.grey == 0 and self.exposure is None

    def corrupt(self, image: NDArray[np.uint8], context: CameraContext) -> NDArray[np.uint8]:
        """See :class:`CameraStep`."""
        levels = np.arange(256) * (1 - self.grey) + 128 * self.grey
        veiled = cv2.LUT(image, np.round(levels).astype(np.uint8))
        if self.exposure is None:
            return np.asarray(veiled, np.uint8)
        brightest = max(int(veiled.max(initial=0)), 1)
        return change_value(
            np.asarray(veiled, np.uint8), np.arange(256) / brightest * self.exposure * 256 / 255
        )


@dataclass(frozen=True)
class Posterise(CameraStep):
    """Keep the highest bits of every colour. RoboBEV: 4, 3, 2 bits.

    Args:
        bits: that stay; 8 changes nothing.
    """

    bits: int

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 8:
            raise ValueError(f"bits is {self.bits}; give 1 to 8")

    def is_identity(self) -> bool:
        """See :class:`CameraStep`."""
        return self.bits == 8

    def corrupt(self, image: NDArray[np.uint8], context: CameraContext) -> NDArray[np.uint8]:
        """See :class:`CameraStep`."""
        return image & np.uint8(256 - (1 << (8 - self.bits)))


def change_value(image: NDArray[np.uint8], new_value: NDArray) -> NDArray[np.uint8]:
    """Change V = max(R, G, B) of HSV; hue and saturation stay.

    Hue and saturation are ratios of R, G, B, so the pixel is scaled by the new V over the old one;
    a black pixel becomes grey.

    Args:
        image: (H, W, 3).
        new_value: (256,) V in 0..1 for every byte; is clipped.
    """
    table = _value_table(np.clip(new_value, 0, 1).astype(np.float64).tobytes())
    changed = np.empty(image.shape, np.uint8)
    _change_value(np.ascontiguousarray(image).reshape(-1, 3), table, changed.reshape(-1, 3))
    return changed


@lru_cache(maxsize=32)
def _value_table(new_value: bytes) -> NDArray[np.uint8]:
    """(256, 256) new colour for V and the old colour."""
    new = np.frombuffer(new_value)[:, None] * 255
    old, colour = np.maximum(np.arange(256.0)[:, None], 1), np.arange(256.0)
    table = new * np.minimum(colour / old, 1)
    table[0] = new[0]
    return np.round(table).astype(np.uint8)


@njit(cache=True, nogil=True)
def _change_value(old, table, new):
    for p in range(len(old)):
        r, g, b = old[p]
        row = table[max(r, g, b)]
        new[p, 0], new[p, 1], new[p, 2] = row[r], row[g], row[b]
