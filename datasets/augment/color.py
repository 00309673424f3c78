"""Change the colours of images at random."""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from ..frame import Camera, Frame, ImageLoader
from ..seeding import generator

_LUMA = np.array([0.299, 0.587, 0.114])  # of red, green, blue (ITU-R BT.601)
_MIDDLE_GREY = 127.5


@dataclass(frozen=True)
class RecoloredImage:
    """An image loader that applies an affine map to another loader's colours.

    Args:
        load: gives the original image.
        matrix: (3, 4) float32; new colour = matrix @ (red, green, blue, 1), clipped to 0..255.
    """

    load: ImageLoader
    matrix: NDArray[np.float32]

    def __call__(self, reduction: int = 1) -> NDArray[np.uint8]:
        """See :class:`ImageLoader`."""
        return np.asarray(cv2.transform(self.load(reduction), self.matrix), np.uint8)


def color_matrix(brightness: float, contrast: float, saturation: float) -> NDArray[np.float32]:
    """(3, 4) map of colours; 1 leaves each property as it is.

    Brightness multiplies, contrast stretches about the middle grey, saturation stretches about
    the grey of the same luma.
    """
    mix = saturation * np.eye(3) + (1 - saturation) * _LUMA
    offset = np.full((3, 1), (1 - contrast) * _MIDDLE_GREY)
    return np.hstack([contrast * brightness * mix, offset]).astype(np.float32)


@dataclass(frozen=True)
class ColorJitter:
    """Vary brightness, contrast and saturation, each camera on its own.

    Cheapest after the images were resized.

    Args:
        brightness: smallest and largest factor.
        contrast: smallest and largest factor.
        saturation: smallest and largest factor.
    """

    brightness: tuple[float, float] = (0.8, 1.2)
    contrast: tuple[float, float] = (0.8, 1.2)
    saturation: tuple[float, float] = (0.8, 1.2)

    def __call__(self, frame: Frame, seed: int) -> Frame:
        """The frame with recoloured images, the same for the same frame and ``seed``."""
        cameras = (self._jittered(camera, frame.token, seed) for camera in frame.cameras)
        return replace(frame, cameras=tuple(cameras))

    def _jittered(self, camera: Camera, token: str, seed: int) -> Camera:
        random = generator(seed, token, f"color_jitter/{camera.name}")
        matrix = color_matrix(
            random.uniform(*self.brightness),
            random.uniform(*self.contrast),
            random.uniform(*self.saturation),
        )
        return replace(camera, load=RecoloredImage(camera.load, matrix))
