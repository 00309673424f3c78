"""A made-up frame, for tracing and where there is no data to check with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...datasets.camera_models import Pinhole
from ...datasets.frame import Camera, Frame, LidarSweep
from ...datasets.geometry import inverse
from ..runtime.manifest import SensorSpec

IMAGE = (1600, 900)  # nuScenes' width and height, of which published resizing cuts a window


@dataclass(frozen=True)
class Noise:
    """Loads an image of noise."""

    seed: int
    size: tuple[int, int]

    def __call__(self, reduction: int = 1) -> NDArray[np.uint8]:
        """See ``ImageLoader``."""
        width, height = (-(-edge // reduction) for edge in self.size)
        random = np.random.default_rng(self.seed)
        return random.integers(0, 256, (height, width, 3)).astype(np.uint8)


@dataclass(frozen=True)
class Cloud:
    """Loads points."""

    points: NDArray[np.float32]

    def __call__(self) -> NDArray[np.float32]:
        """See ``PointLoader``."""
        return self.points


def example_frame(
    sensors: SensorSpec, num_cameras: int = 2, num_points: int = 4000, timestamp_us: int = 0
) -> Frame:
    """Cameras that look ahead and behind, and points all over the range, of noise."""
    random = np.random.default_rng(0)
    size = IMAGE if sensors.image_steps else (sensors.image_size or IMAGE)
    intrinsic = np.array(
        [[0.8 * size[0], 0, size[0] / 2], [0, 0.8 * size[0], size[1] / 2], [0, 0, 1]]
    )
    cameras = []
    for n, sign in enumerate(np.resize([1.0, -1.0], num_cameras)):
        mounting = np.eye(4)
        mounting[:3, :3] = [[0, 0, sign], [-sign, 0, 0], [0, -1, 0]]
        mounting[2, 3] = 1.5
        model = Pinhole(intrinsic, *size)
        cameras.append(Camera(f"CAMERA_{n}", Noise(n, size), model, mounting, np.eye(4), 0))
    low, high = np.array(sensors.point_range).reshape(2, 3)
    bev_from_ego = np.eye(4)
    if sensors.frame == "lidar":  # x right, y forward
        bev_from_ego[:2, :2] = [[0, -1], [1, 0]]
    points = np.zeros((num_points, 5), np.float32)
    points[:, :3] = random.uniform(low, high, (num_points, 3)) @ inverse(bev_from_ego)[:3, :3].T
    points[:, 3] = random.uniform(0, 255, num_points)
    sweep = LidarSweep(Cloud(points), np.eye(4), np.eye(4), 0)
    return Frame(
        "example", "example", "", timestamp_us, np.eye(4), tuple(cameras), (sweep,), None,
        bev_from_ego=bev_from_ego,
    )  # fmt: skip
