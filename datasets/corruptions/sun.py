"""A low sun in one camera and in the LiDAR."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..frame import Camera, Frame
from ..geometry import apply, inverse
from ..seeding import generator
from .sensors import (
    CameraContext,
    CameraStep,
    ChangedImage,
    ChangedPoints,
    SweepContext,
    SweepStep,
)

_REFERENCE_WIDTH = 1600  # sizes are pixels of an image this wide
_GAIN = 1.5  # the middle of the spot is saturated
_BLINDING = 0.8  # brightness of the spot where the LiDAR sees nothing


@dataclass(frozen=True)
class SunGlare:
    """The sun stands in an image; the LiDAR is blind towards it and sees ghosts elsewhere.

    The image gets a white Gaussian spot, its gain 1.5 clipped to 1, with the middle at 0.25 to
    0.75 of the width and 0.30 to 0.45 of the height, and one flare on the line from there through
    the middle of the image. Points that project to where the spot is brighter than 0.8 are lost
    (1.12 sigma); then a share of the others is moved by N(0, 3 m) on every axis. nuScenes-C: sigma
    30, 40, 50, 60, 70 pixels, share 0.4, 0.8, 1.2, 1.6, 2.0 %.

    The sun is far away, so all sweeps see it in the same direction from the vehicle. A frame
    without that camera stays as it is.

    Args:
        sigma: of the spot, pixels of an image 1,600 wide.
        ghost_share: share of points that are moved.
        ghost_sd: metres.
        camera: the camera that looks towards the sun.
    """

    sigma: float
    ghost_share: float
    ghost_sd: float = 3.0
    camera: str = "CAM_FRONT"

    def __call__(self, frame: Frame, seed: int) -> Frame:
        """The frame under the sun, the same for the same frame and ``seed``."""
        camera = next((c for c in frame.cameras if c.name == self.camera), None)
        if camera is None or self.sigma <= 0:
            return frame
        random, name = generator(seed, frame.token, "sun_glare"), "sun_glare"
        width, height = camera.model.width, camera.model.height
        middle = np.array([width, height]) * [random.uniform(0.25, 0.75), random.uniform(0.3, 0.45)]
        sun = _Sun(float(middle[0]), float(middle[1]), self.sigma * width / _REFERENCE_WIDTH)
        shining, blinding = _Shining(sun), _Blinding(sun, camera, self.ghost_share, self.ghost_sd)
        loader = ChangedImage(shining, CameraContext(frame, camera, seed, name))
        return replace(
            frame,
            cameras=tuple(replace(c, load=loader) if c is camera else c for c in frame.cameras),
            sweeps=tuple(
                replace(s, load=ChangedPoints(blinding, SweepContext(frame, s, seed, name)))
                for s in frame.sweeps
            ),
        )


@dataclass(frozen=True)
class _Sun:
    """The spot: its middle and its sigma, pixels."""

    column: float
    row: float
    sigma: float

    def brightness(self, column: NDArray, row: NDArray) -> NDArray:
        """0..1 at pixels."""
        return _spot(column - self.column, row - self.row, self.sigma, _GAIN)


def _spot(right: NDArray, down: NDArray, sigma: float, gain: float) -> NDArray:
    return np.minimum(gain * np.exp(-(right**2 + down**2) / (2 * sigma**2)), 1)


@dataclass(frozen=True)
class _Shining(CameraStep):
    sun: _Sun

    def corrupt(self, image: NDArray[np.uint8], context: CameraContext) -> NDArray[np.uint8]:
        height, width = image.shape[:2]
        random = context.random()
        glowing = image.copy()
        _lighten(glowing, (self.sun.column, self.sun.row), self.sun.sigma, _GAIN, np.full(3, 255))
        # A reflection inside the lens lies on the other side of the middle or before it.
        along = random.uniform(0.3, 1.8)
        flare = (
            self.sun.column + along * (width / 2 - self.sun.column),
            self.sun.row + along * (height / 2 - self.sun.row),
        )
        sigma, colour = random.uniform(1, height / 15), random.uniform(205, 255, 3)
        _lighten(glowing, flare, sigma, 4.0, colour, random.uniform(0.2, 0.5))
        return glowing


def _lighten(
    image: NDArray[np.uint8],
    middle: tuple[float, float],
    sigma: float,
    gain: float,
    colour: NDArray,
    opacity: float = 1.0,
) -> None:
    """Blend a spot into the image, in place; no pixel gets darker."""
    height, width = image.shape[:2]
    reach = sigma * np.sqrt(2 * np.log(510 * gain))  # beyond, it is less than half a grey level
    left, right = (int(np.clip(middle[0] + s * reach, 0, width)) for s in (-1, 1))
    top, bottom = (int(np.clip(middle[1] + s * reach, 0, height)) for s in (-1, 1))
    part = image[top:bottom, left:right].astype(np.float32)
    column, row = (
        np.arange(left, right)[None] - middle[0],
        np.arange(top, bottom)[:, None] - middle[1],
    )
    share = opacity * _spot(column, row, sigma, gain)[..., None].astype(np.float32)
    lit = part + share * np.maximum(colour.astype(np.float32) - part, 0)
    image[top:bottom, left:right] = np.round(lit)


@dataclass(frozen=True, eq=False)
class _Blinding(SweepStep):
    sun: _Sun
    camera: Camera
    ghost_share: float
    ghost_sd: float

    def corrupt(self, points: NDArray[np.float32], context: SweepContext) -> NDArray[np.float32]:
        camera_from_lidar = inverse(self.camera.ego_from_camera) @ context.sweep.ego_from_lidar
        in_camera = apply(camera_from_lidar, points[:, :3].astype(np.float64))
        pixels = self.camera.model.project(in_camera)
        with np.errstate(invalid="ignore"):
            brightness = self.sun.brightness(pixels[:, 0], pixels[:, 1])
            blind = (brightness > _BLINDING) & (in_camera[:, 2] > 0)
        left, random = points[~blind], context.random()
        ghosts = random.choice(len(left), round(len(left) * self.ghost_share), replace=False)
        left[ghosts, :3] += random.normal(0, self.ghost_sd, (len(ghosts), 3)).astype(np.float32)
        return left
