"""Camera models: what turns points in a camera's frame into pixels and back.

The camera frame is z forward, x right, y down. Pixel (0, 0) is the centre of the first pixel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..kernels.inverse import inverse_3x3


class CameraModel(Protocol):
    """What a camera has to offer; distorted and fisheye lenses fit the same interface."""

    @property
    def width(self) -> int:
        """Image columns."""
        ...

    @property
    def height(self) -> int:
        """Image rows."""
        ...

    def project(self, points: NDArray) -> NDArray:
        """(..., 3) metres in the camera frame -> (..., 3): u, v in pixels and depth z."""
        ...

    def unproject(self, pixels: NDArray) -> NDArray:
        """(..., 3) u, v, depth z -> (..., 3) metres in the camera frame."""
        ...


@dataclass(frozen=True)
class Pinhole:
    """An ideal camera: (u, v, 1) ~ intrinsic @ (x, y, z).

    Args:
        intrinsic: (3, 3); last row 0, 0, 1. Mirrored and turned images have entries below zero
            or off the diagonal, which is how image augmentation is expressed.
        width: image columns.
        height: image rows.
    """

    intrinsic: NDArray[np.float64]
    width: int
    height: int

    def project(self, points: NDArray) -> NDArray:
        """See :class:`CameraModel`; points at or behind the camera give NaN pixels."""
        depth = points[..., 2:3]
        ahead = np.where(depth > 0, depth, np.nan)
        return np.concatenate([(points @ self.intrinsic.T)[..., :2] / ahead, depth], -1)

    def unproject(self, pixels: NDArray) -> NDArray:
        """See :class:`CameraModel`."""
        depth = pixels[..., 2:3]
        homogeneous = np.concatenate([pixels[..., :2] * depth, depth], -1)
        return homogeneous @ inverse_3x3(self.intrinsic).T

    def resampled(self, new_from_old: NDArray, width: int, height: int) -> Pinhole:
        """The camera after its image was moved by the affine (3, 3) ``new_from_old``."""
        return Pinhole(new_from_old @ self.intrinsic, width, height)
