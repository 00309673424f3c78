"""Fit camera images to the network: resize, crop, mirror and turn, and the calibration with them.

All of it is one affine map of pixels, drawn per camera. The image is sampled through that map and
the camera model is multiplied by it, so that a projected point stays on what it shows.

Resampling is part of a trained model, so its meaning is fixed here and not left to a library's
resize: the image is decoded at the largest reduction of 2, 4 or 8 that does not fall below the
wanted scale (each reduced pixel is the mean of the pixels it covers), then sampled bilinearly at
the exact position of every new pixel's centre; outside the image is black.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from ...kernels.inverse import inverse_3x3
from ..camera_models import Pinhole
from ..frame import Camera, Frame, ImageLoader
from ..seeding import generator


@dataclass(frozen=True)
class WarpedImage:
    """An image loader that moves another loader's pixels.

    Args:
        load: gives the original image.
        new_from_old: (3, 3) affine, original pixels to new pixels.
        size: width and height of the new image.
    """

    load: ImageLoader
    new_from_old: NDArray[np.float64]
    size: tuple[int, int]

    def __call__(self, reduction: int = 1) -> NDArray[np.uint8]:
        """See :class:`ImageLoader`."""
        new_from_old = inverse_3x3(_full_from_reduced(reduction)) @ self.new_from_old
        size = tuple(-(-edge // reduction) for edge in self.size)
        scale = np.sqrt(abs(np.linalg.det(new_from_old[:2, :2])))
        # The tolerance keeps a scale of exactly 1/2 at 1/2 after a rotation's rounding.
        decoded = next((r for r in (8, 4, 2) if scale * r <= 1 + 1e-9), 1)
        matrix = new_from_old @ _full_from_reduced(decoded)
        image = cv2.warpAffine(self.load(decoded), matrix[:2], size, flags=cv2.INTER_LINEAR)
        return np.asarray(image, np.uint8)


def _full_from_reduced(reduction: int) -> NDArray[np.float64]:
    """Pixels of a reduced image to pixels of the full one, centre to centre."""
    offset = (reduction - 1) / 2
    return np.array([[reduction, 0, offset], [0, reduction, offset], [0, 0, 1]], np.float64)


def window_affine(
    source: tuple[int, int],
    size: tuple[int, int],
    resize: float,
    horizontal: float,
    crop_bottom: float,
    flip: bool = False,
    rotation: float = 0.0,
) -> NDArray[np.float64]:
    """The affine map of pixels that resizes an image and cuts the network's window out of it.

    Args:
        source: width and height of the image.
        size: width and height of the window.
        resize: width of the resized image over the width of the window; 1 fits it exactly.
        horizontal: where the window lies in the excess width, 0 left to 1 right.
        crop_bottom: share of the resized height cut off below the window.
        flip: mirror left and right.
        rotation: of the window about its middle, radians, clockwise as seen.

    Returns:
        (3, 3) new_from_old.
    """
    (source_width, source_height), (width, height) = source, size
    scale = resize * width / source_width
    left = horizontal * (scale * source_width - width)
    top = (1 - crop_bottom) * scale * source_height - height
    matrix = np.array([[scale, 0, -left], [0, scale, -top], [0, 0, 1]])
    if flip:
        matrix = np.array([[-1, 0, width], [0, 1, 0], [0, 0, 1]]) @ matrix
    cos, sin = np.cos(rotation), np.sin(rotation)
    turn = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    matrix = _shift(width / 2, height / 2) @ turn @ _shift(-width / 2, -height / 2) @ matrix
    # Everything above counts from the corner of the image; pixels count from the first centre.
    return _shift(-0.5, -0.5) @ matrix @ _shift(0.5, 0.5)


def _shift(x: float, y: float) -> NDArray[np.float64]:
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1]], np.float64)


def warp_camera(camera: Camera, new_from_old: NDArray, size: tuple[int, int]) -> Camera:
    """The camera with image and calibration moved by ``new_from_old``.

    Raises:
        ValueError: if the camera is not a pinhole.
    """
    if not isinstance(camera.model, Pinhole):
        raise ValueError(
            f"{camera.name} is a {type(camera.model).__name__}; images can only be resized for "
            "Pinhole cameras, so undistort it while reading"
        )
    model = camera.model.resampled(new_from_old, *size)
    return replace(camera, load=WarpedImage(camera.load, new_from_old, size), model=model)


def _check_window(
    size: tuple[int, int], resize: tuple[float, float], crop_bottom: tuple[float, float]
) -> None:
    if min(size) < 1:
        raise ValueError(f"size is {size}; give a width and a height of at least one pixel")
    if not 0 < resize[0] <= resize[1]:
        raise ValueError(f"resize is {resize}; give 0 < smallest <= largest")
    if not 0 <= crop_bottom[0] <= crop_bottom[1] < 1:
        raise ValueError(f"crop_bottom is {crop_bottom}; give shares, 0 <= smallest <= largest < 1")


@dataclass(frozen=True)
class ImageResize:
    """Resize and crop every image the same way: what evaluation uses.

    Args:
        size: width and height of the network's images.
        resize: width of the resized image over the width of ``size``; 1 keeps the whole width of
            the image, whatever its resolution; more cuts the same strip off left and right.
        crop_bottom: share of the resized height cut off at the bottom; the rest of the excess is
            cut at the top, which on a vehicle shows the sky.
    """

    size: tuple[int, int]
    resize: float = 1.0
    crop_bottom: float = 0.0

    def __post_init__(self) -> None:
        crop = (self.crop_bottom, self.crop_bottom)
        _check_window(self.size, (self.resize, self.resize), crop)

    def __call__(self, frame: Frame, seed: int) -> Frame:
        """The frame with resized images; ``seed`` is not used."""
        return replace(frame, cameras=tuple(map(self._resized, frame.cameras)))

    def _resized(self, camera: Camera) -> Camera:
        size = (int(self.size[0]), int(self.size[1]))
        source = (camera.model.width, camera.model.height)
        matrix = window_affine(source, size, self.resize, 0.5, self.crop_bottom)
        return warp_camera(camera, matrix, size)


@dataclass(frozen=True)
class ImageAugmentation:
    """Resize, crop, mirror and turn every image at random, each camera on its own.

    Args:
        size: width and height of the network's images.
        resize: smallest and largest width of the resized image over the width of ``size`` (see
            :class:`ImageResize`); where it is wider the window lies anywhere within it.
        crop_bottom: smallest and largest share of the resized height cut off at the bottom.
        flip: mirror every other image.
        rotation: smallest and largest turn, radians.
    """

    size: tuple[int, int]
    resize: tuple[float, float] = (1.0, 1.0)
    crop_bottom: tuple[float, float] = (0.0, 0.0)
    flip: bool = False
    rotation: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        _check_window(self.size, self.resize, self.crop_bottom)

    def __call__(self, frame: Frame, seed: int) -> Frame:
        """The frame with augmented images, the same for the same frame and ``seed``."""
        cameras = (self._augmented(camera, frame.token, seed) for camera in frame.cameras)
        return replace(frame, cameras=tuple(cameras))

    def _augmented(self, camera: Camera, token: str, seed: int) -> Camera:
        random = generator(seed, token, f"image_augmentation/{camera.name}")
        size = (int(self.size[0]), int(self.size[1]))
        matrix = window_affine(
            (camera.model.width, camera.model.height),
            size,
            resize=random.uniform(*self.resize),
            horizontal=random.uniform(),
            crop_bottom=random.uniform(*self.crop_bottom),
            flip=self.flip and random.random() < 0.5,
            rotation=random.uniform(*self.rotation),
        )
        return warp_camera(camera, matrix, size)
