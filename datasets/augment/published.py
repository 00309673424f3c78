"""Camera images as MIT BEVFusion prepared them, so that its published weights see what they know.

Against :class:`ImageResize` and :class:`ImageAugmentation`: Pillow's bicubic filter, sizes and
crops of whole pixels, a turn by nearest pixel, and a calibration that counts from pixels' corners
and from their centres alike: at 0.48 the image lies a quarter of a pixel beside where it says.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from ..camera_models import Pinhole
from ..frame import Camera, Frame, ImageLoader
from ..seeding import generator
from .bicubic import resize_bicubic


@dataclass(frozen=True)
class PublishedWindow:
    """How one image is resized, cut, mirrored and turned.

    Args:
        size: width and height of the network's images.
        resize: factor on the image's width and height.
        left: first column of the window in the resized image.
        flip: mirror left and right.
        degrees: turn about the middle, counter-clockwise as seen.
    """

    size: tuple[int, int]
    resize: float
    left: int
    flip: bool = False
    degrees: float = 0.0

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """Size of the whole resized image."""
        return int(width * self.resize), int(height * self.resize)

    def top(self, height: int) -> int:
        """First row of the window: its lower edge is the image's."""
        return int(height * self.resize) - self.size[1]

    def new_from_old(self, height: int) -> NDArray[np.float64]:
        """(3, 3) what the published calibration says of pixels, for an image of this height."""
        width, rows = self.size
        matrix = np.diag([self.resize, self.resize, 1.0])
        matrix[:2, 2] = -self.left, -self.top(height)
        if self.flip:
            matrix = np.array([[-1, 0, width], [0, 1, 0], [0, 0, 1.0]]) @ matrix
        cos, sin = np.cos(np.deg2rad(self.degrees)), np.sin(np.deg2rad(self.degrees))
        turn = np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]])
        middle = np.array([width / 2, rows / 2])
        turn[:2, 2] = middle - turn[:2, :2] @ middle
        return np.asarray(turn @ matrix, np.float64)


@dataclass(frozen=True)
class PublishedImage:
    """An image loader that prepares another loader's image."""

    load: ImageLoader
    window: PublishedWindow

    def __call__(self, reduction: int = 1) -> NDArray[np.uint8]:
        """See :class:`ImageLoader`."""
        image, window = self.load(), self.window
        (height, width), (columns, rows) = image.shape[:2], window.size
        left, top = window.left, window.top(height)
        corners = (left, top, left + columns, top + rows)
        image = resize_bicubic(image, window.resized(width, height), corners)
        if window.flip:
            image = image[:, ::-1]
        if window.degrees:
            image = turned(image, window.degrees)
        if reduction > 1:
            size = (-(-columns // reduction), -(-rows // reduction))
            image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        return np.ascontiguousarray(image, np.uint8)


def turned(image: NDArray[np.uint8], degrees: float) -> NDArray[np.uint8]:
    """The image (H, W, 3) turned counter-clockwise about its middle, by nearest pixel."""
    rows, columns = image.shape[:2]
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    x = np.arange(columns) + 0.5 - columns / 2
    y = (np.arange(rows) + 0.5 - rows / 2)[:, None]
    u = np.floor(cos * x - sin * y + columns / 2).astype(np.int64)
    v = np.floor(sin * x + cos * y + rows / 2).astype(np.int64)
    inside = (u >= 0) & (u < columns) & (v >= 0) & (v < rows)
    found = image[v.clip(0, rows - 1), u.clip(0, columns - 1)]
    return np.where(inside[..., None], found, 0).astype(np.uint8)


def _prepared(camera: Camera, window: PublishedWindow) -> Camera:
    model = camera.model
    if not isinstance(model, Pinhole):
        raise ValueError(
            f"{camera.name} is a {type(model).__name__}; images can only be resized for Pinhole "
            "cameras, so undistort it while reading"
        )
    model = model.resampled(window.new_from_old(model.height), *window.size)
    return replace(camera, load=PublishedImage(camera.load, window), model=model)


@dataclass(frozen=True)
class PublishedResize:
    """What MIT BEVFusion's evaluation does to every image.

    Args:
        size: width and height of the network's images.
        resize: factor on the image's width and height; the window is cut from the middle of the
            lower edge.
    """

    size: tuple[int, int] = (704, 256)
    resize: float = 0.48

    def __call__(self, frame: Frame, seed: int) -> Frame:
        """The frame with prepared images; ``seed`` is not used."""
        cameras = []
        for camera in frame.cameras:
            excess = int(camera.model.width * self.resize) - self.size[0]
            window = PublishedWindow(_whole(self.size), self.resize, int(max(0, excess) / 2))
            cameras.append(_prepared(camera, window))
        return replace(frame, cameras=tuple(cameras))


@dataclass(frozen=True)
class PublishedImageAugmentation:
    """What MIT BEVFusion's training does to every image, each camera on its own.

    Args:
        size: width and height of the network's images.
        resize: smallest and largest factor on the image's width and height.
        flip: mirror every other image.
        degrees: smallest and largest turn.
    """

    size: tuple[int, int] = (704, 256)
    resize: tuple[float, float] = (0.38, 0.55)
    flip: bool = True
    degrees: tuple[float, float] = (-5.4, 5.4)

    def __call__(self, frame: Frame, seed: int) -> Frame:
        """The frame with augmented images, the same for the same frame and ``seed``."""
        cameras = (_prepared(camera, self._draw(camera, frame, seed)) for camera in frame.cameras)
        return replace(frame, cameras=tuple(cameras))

    def _draw(self, camera: Camera, frame: Frame, seed: int) -> PublishedWindow:
        random = generator(seed, frame.token, f"image_augmentation/{camera.name}")
        resize = random.uniform(*self.resize)
        excess = max(0, int(camera.model.width * resize) - self.size[0])
        return PublishedWindow(
            size=_whole(self.size),
            resize=resize,
            left=int(random.uniform(0, excess)),
            flip=bool(self.flip and random.random() < 0.5),
            degrees=random.uniform(*self.degrees),
        )


def _whole(size: tuple[int, int]) -> tuple[int, int]:
    return int(size[0]), int(size[1])
