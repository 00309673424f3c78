"""Sensors that are not where the calibration says; the truth stays where it was."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..camera_models import Pinhole
from ..frame import Camera, Frame
from ..geometry import inverse, transform
from ..seeding import generator


@dataclass(frozen=True)
class CalibrationDrift:
    """The mounting of sensors turns by N(0, rotation) about and moves by N(0, translation) along
    every axis.

    nuScenes-C has these sizes on its LiDAR-to-image matrices: 0.004, 0.008, 0.012, 0.016, 0.020
    and 0.04, 0.08, 0.12, 0.16, 0.20.

    Args:
        rotation: radians.
        translation: metres.
        sensors: ``"cameras"``, each by its own draw, ``"lidar"`` or ``"all"``.
        scope: draw anew for every ``"frame"`` or for every ``"scene"``.
    """

    rotation: float
    translation: float
    sensors: Literal["cameras", "lidar", "all"] = "cameras"
    scope: Literal["frame", "scene"] = "frame"

    def __post_init__(self) -> None:
        if self.sensors not in ("cameras", "lidar", "all") or self.scope not in ("frame", "scene"):
            raise ValueError(
                f'sensors is "{self.sensors}", scope "{self.scope}"; give "cameras", "lidar" or '
                '"all", and "frame" or "scene"'
            )

    def __call__(self, frame: Frame, seed: int) -> Frame:
        """The frame with drifted mountings, the same for the same frame and ``seed``."""
        if self.rotation == 0 == self.translation:
            return frame
        cameras, sweeps = frame.cameras, frame.sweeps
        if self.sensors != "lidar":
            cameras = tuple(
                replace(c, ego_from_camera=c.ego_from_camera @ self._drift(frame, seed, c.name))
                for c in cameras
            )
        if self.sensors != "cameras":
            drift = self._drift(frame, seed, "lidar")
            sweeps = tuple(replace(s, ego_from_lidar=s.ego_from_lidar @ drift) for s in sweeps)
        return replace(frame, cameras=cameras, sweeps=sweeps)

    def _drift(self, frame: Frame, seed: int, sensor: str) -> NDArray[np.float64]:
        place = frame.token if self.scope == "frame" else frame.scene
        random = generator(seed, place, f"calibration_drift/{sensor}")
        angles = random.normal(0, self.rotation, 3)
        return transform(rotation_of_vector(angles), random.normal(0, self.translation, 3))


@dataclass(frozen=True)
class ProjectionNoise:
    """Noise on the entries of every LiDAR-to-image matrix, as nuScenes-C adds it.

    N(0, linear) on the 3 x 3 block and N(0, offset) on the last column of the matrix that takes
    points of the LiDAR to (u d, v d, d), in pixels and metres: what it does depends on the focal
    length, and no camera has such a matrix. The mounting becomes what gives this matrix.

    Args:
        linear: standard deviation.
        offset: standard deviation.
    """

    linear: float
    offset: float

    def __call__(self, frame: Frame, seed: int) -> Frame:
        """The frame with other mountings, the same for the same frame and ``seed``."""
        return replace(frame, cameras=tuple(self._noisy(frame, c, seed) for c in frame.cameras))

    def _noisy(self, frame: Frame, camera: Camera, seed: int) -> Camera:
        if not isinstance(camera.model, Pinhole):
            raise ValueError(
                f"{camera.name} is a {type(camera.model).__name__}; only a Pinhole has a "
                "LiDAR-to-image matrix, use CalibrationDrift"
            )
        random = generator(seed, frame.token, f"projection_noise/{camera.name}")
        noise = np.zeros((4, 4))
        noise[:3, :3] = random.normal(0, self.linear, (3, 3))
        noise[:3, 3] = random.normal(0, self.offset, 3)
        image_from_camera = np.eye(4)
        image_from_camera[:3, :3] = camera.model.intrinsic
        # From the LiDAR by the world, since the image was taken at another moment.
        world_from_lidar = frame.global_from_ego
        if frame.sweeps:
            world_from_lidar = frame.sweeps[0].global_from_ego @ frame.sweeps[0].ego_from_lidar
        ego_from_lidar = inverse(camera.global_from_ego) @ world_from_lidar
        camera_from_lidar = inverse(camera.ego_from_camera) @ ego_from_lidar
        noisy = camera_from_lidar + inverse(image_from_camera) @ noise
        return replace(camera, ego_from_camera=ego_from_lidar @ inverse(noisy))


def rotation_of_vector(vector: NDArray) -> NDArray[np.float64]:
    """(3,) axis times angle in radians -> (3, 3), by Rodrigues' formula."""
    x, y, z = vector
    cross, angle = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]]), float(np.linalg.norm(vector))
    half = np.sinc(angle / (2 * np.pi))  # sin(angle / 2) / (angle / 2)
    return np.eye(3) + np.sinc(angle / np.pi) * cross + half**2 / 2 * cross @ cross
