"""Change what sensors saw, when it is loaded and not before.

A corruption of points is a frozen dataclass with :class:`SweepStep` as base; it says in
``corrupt`` what happens to one cloud, and gets at the frame, the sweep and random numbers through
a :class:`SweepContext`. :class:`CameraStep` is the same for images.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..frame import Camera, Frame, LidarSweep
from ..images import reduced
from ..seeding import generator


@dataclass(frozen=True)
class SweepContext:
    """Where a cloud comes from, and the random numbers for it."""

    frame: Frame  # before this step
    sweep: LidarSweep  # of that frame
    seed: int
    name: str  # of the step

    def random(self) -> np.random.Generator:
        """Draws of this sweep alone; the same at every call."""
        name = f"{self.name}/{self.sweep.timestamp_us}"
        return generator(self.seed, self.frame.token, name)

    def frame_random(self) -> np.random.Generator:
        """Draws that all sweeps of the frame share; the same at every call."""
        return generator(self.seed, self.frame.token, self.name)


@dataclass(frozen=True)
class CameraContext:
    """Where an image comes from, and the random numbers for it."""

    frame: Frame  # before this step
    camera: Camera  # of that frame
    seed: int
    name: str  # of the step

    def random(self) -> np.random.Generator:
        """Draws of this camera alone; the same at every call."""
        return generator(self.seed, self.frame.token, f"{self.name}/{self.camera.name}")

    def frame_random(self) -> np.random.Generator:
        """Draws that all cameras of the frame share; the same at every call."""
        return generator(self.seed, self.frame.token, self.name)


class SweepStep:
    """Base of corruptions of points: the key sweep and the previous ones alike."""

    def is_identity(self) -> bool:
        """Whether the parameters change nothing; the frame is then returned as it is."""
        return False

    def corrupt(self, points: NDArray[np.float32], context: SweepContext) -> NDArray[np.float32]:
        """The changed cloud.

        Args:
            points: (P, 5) as ``PointLoader`` gives them; not to be written to. P may be 0.
            context: the sweep and its random numbers.
        """
        raise NotImplementedError

    def __call__(self, frame: Frame, seed: int) -> Frame:
        """The frame with sweeps that are changed when they are loaded."""
        if self.is_identity() or not frame.sweeps:
            return frame
        name = type(self).__name__
        sweeps = (
            replace(sweep, load=ChangedPoints(self, SweepContext(frame, sweep, seed, name)))
            for sweep in frame.sweeps
        )
        return replace(frame, sweeps=tuple(sweeps))


class CameraStep:
    """Base of corruptions of images."""

    def is_identity(self) -> bool:
        """Whether the parameters change nothing; the frame is then returned as it is."""
        return False

    def corrupt(self, image: NDArray[np.uint8], context: CameraContext) -> NDArray[np.uint8]:
        """The changed image.

        Args:
            image: (H, W, 3) RGB; not to be written to.
            context: the camera and its random numbers.
        """
        raise NotImplementedError

    def __call__(self, frame: Frame, seed: int) -> Frame:
        """The frame with images that are changed when they are loaded."""
        if self.is_identity() or not frame.cameras:
            return frame
        name = type(self).__name__
        cameras = (
            replace(camera, load=ChangedImage(self, CameraContext(frame, camera, seed, name)))
            for camera in frame.cameras
        )
        return replace(frame, cameras=tuple(cameras))


@dataclass(frozen=True)
class ChangedPoints:
    """A point loader that applies a step to another loader's points."""

    step: SweepStep
    context: SweepContext

    def __call__(self) -> NDArray[np.float32]:
        """See ``PointLoader``."""
        points = self.step.corrupt(self.context.sweep.load(), self.context)
        assert points.shape == (len(points), 5), points.shape
        return np.ascontiguousarray(points, np.float32)


@dataclass(frozen=True)
class ChangedImage:
    """An image loader that applies a step to another loader's image.

    The full image is changed and then reduced: blur, noise and fog are defined on its pixels.
    """

    step: CameraStep
    context: CameraContext

    def __call__(self, reduction: int = 1) -> NDArray[np.uint8]:
        """See ``ImageLoader``."""
        image = self.context.camera.load()
        changed = self.step.corrupt(image, self.context)
        assert changed.shape == image.shape, changed.shape
        return reduced(np.asarray(changed, np.uint8), reduction)
