"""Sensors that give nothing: black images, cameras and LiDAR that are gone."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..frame import Camera, Frame
from ..seeding import generator


@dataclass(frozen=True)
class BlackImage:
    """An image loader that gives black; nothing is read."""

    width: int
    height: int

    def __call__(self, reduction: int = 1) -> NDArray[np.uint8]:
        """See ``ImageLoader``."""
        return np.zeros((-(-self.height // reduction), -(-self.width // reduction), 3), np.uint8)


def without_cameras(frame: Frame, names: set[str], absent: bool = False) -> Frame:
    """The frame with some cameras' images black, or without those cameras."""
    if absent:
        return replace(frame, cameras=tuple(c for c in frame.cameras if c.name not in names))
    cameras = tuple(_black(c) if c.name in names else c for c in frame.cameras)
    return replace(frame, cameras=cameras)


def _black(camera: Camera) -> Camera:
    return replace(camera, load=BlackImage(camera.model.width, camera.model.height))


@dataclass(frozen=True)
class LoseImages:
    """Each camera loses its image, by chance and for this frame alone.

    MultiCorrupt's missing camera: 0.2, 0.4, 0.6. RoboBEV's lost frames: 2/6, 4/6, 5/6.

    Args:
        probability: for every camera.
        absent: the camera is gone; else its image is black.
    """

    probability: float
    absent: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ValueError(f"probability is {self.probability:g}; give a value from 0 to 1")

    def __call__(self, frame: Frame, seed: int) -> Frame:
        """The frame with some images lost, the same for the same frame and ``seed``."""
        lost = {
            camera.name
            for camera in frame.cameras
            if generator(seed, frame.token, f"lose_images/{camera.name}").random()
            < self.probability
        }
        return without_cameras(frame, lost, self.absent) if lost else frame


@dataclass(frozen=True)
class CrashCameras:
    """The same cameras are dead throughout a scene, or throughout the data.

    RoboBEV: 2, 4, 5 cameras, drawn with replacement (so that 5 draws may hit 2) and once for all.

    Args:
        count: cameras that are dead.
        absent: the cameras are gone; else their images are black.
        with_replacement: draw with replacement.
        same_everywhere: draw once for the seed and not once for a scene.
    """

    count: int
    absent: bool = False
    with_replacement: bool = False
    same_everywhere: bool = False

    def __call__(self, frame: Frame, seed: int) -> Frame:
        """The frame with dead cameras, the same for the same scene and ``seed``."""
        names = sorted(camera.name for camera in frame.cameras)
        if not names or not self.count:
            return frame
        random = generator(seed, "" if self.same_everywhere else frame.scene, "crash_cameras")
        count = self.count if self.with_replacement else min(self.count, len(names))
        dead = random.choice(len(names), count, replace=self.with_replacement)
        return without_cameras(frame, {names[i] for i in dead}, self.absent)


@dataclass(frozen=True)
class LoseSensors:
    """Take named sensors away from every frame.

    Args:
        cameras: channels whose cameras are lost.
        lidar: the LiDAR is lost: the frame has no sweep.
        absent: lost cameras are gone; else their images are black.
    """

    cameras: tuple[str, ...] = ()
    lidar: bool = False
    absent: bool = False

    def __call__(self, frame: Frame, seed: int) -> Frame:
        """The frame without them; ``seed`` is not used."""
        frame = without_cameras(frame, set(self.cameras), self.absent) if self.cameras else frame
        return replace(frame, sweeps=()) if self.lidar else frame
