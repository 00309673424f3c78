"""Frames made by hand, for tests of what happens to them."""

from dataclasses import dataclass, replace

import numpy as np

from bevstack.datasets.boxes import Boxes3D
from bevstack.datasets.camera_models import Pinhole
from bevstack.datasets.errors import DataError
from bevstack.datasets.frame import Annotations, Camera, Frame, LidarSweep
from bevstack.datasets.geometry import quaternion_from_yaw, transform

# x right, y down, z forward -> x forward, y left, z up
EGO_FROM_OPTICAL = np.array([[0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]], float)


@dataclass(frozen=True)
class Pixels:
    """An image loader over an array; reduction takes means, as a JPEG decoder does."""

    image: np.ndarray

    def __call__(self, reduction=1):
        if reduction == 1:
            return self.image
        height, width, _ = self.image.shape
        padding = [(0, -height % reduction), (0, -width % reduction), (0, 0)]
        image = np.pad(self.image, padding, mode="edge").astype(float)
        height, width, _ = image.shape
        blocks = image.reshape(height // reduction, reduction, width // reduction, reduction, 3)
        return blocks.mean((1, 3)).round().astype(np.uint8)


@dataclass(frozen=True)
class Points:
    """A point loader over an array."""

    points: np.ndarray

    def __call__(self):
        return self.points


def pose(x=0.0, y=0.0, z=0.0, yaw=0.0):
    return transform(quaternion_from_yaw(yaw), [x, y, z])


def make_camera(name="CAM_FRONT", image=None, yaw=0.0, focal=200.0):
    """A camera on a vehicle that drives: its ego pose is not the LiDAR's."""
    if image is None:
        random = np.random.default_rng(len(name))
        image = random.integers(0, 256, (90, 160, 3), np.uint8)
    height, width, _ = image.shape
    intrinsic = np.array([[focal, 0, width / 2 + 3], [0, focal, height / 2 - 2], [0, 0, 1]])
    return Camera(
        name,
        Pixels(image),
        Pinhole(intrinsic, width, height),
        ego_from_camera=pose(1.5, 0.2, 1.6, yaw) @ EGO_FROM_OPTICAL,
        global_from_ego=pose(600.3, 900.1, 0, 0.71),
        timestamp_us=980_000,
    )


def make_sweep(points, lag_us=0):
    back = lag_us * 1e-5
    return LidarSweep(
        Points(np.asarray(points, np.float32)),
        ego_from_lidar=pose(0.9, 0, 1.8, -np.pi / 2),
        global_from_ego=pose(600 - back, 900, 0, 0.7),
        timestamp_us=1_000_000 - lag_us,
    )


def make_annotations(center, size, yaw, label=None, num_points=None):
    count = len(center)
    boxes = Boxes3D(
        np.asarray(center, float).reshape(count, 3),
        np.asarray(size, float).reshape(count, 3),
        np.asarray(yaw, float),
        np.tile([1.0, 2.0], (count, 1)),
        np.zeros(count, np.int64) if label is None else np.asarray(label, np.int64),
    )
    return Annotations(
        boxes,
        np.arange(count) % 3,
        tuple(f"instance{i}" for i in range(count)),
        np.full(count, 4),
        np.full(count, 5) if num_points is None else np.asarray(num_points),
        np.zeros(count, np.int64),
        ("vehicle.car",) * count,
    )


def make_frame(token="frame0", cameras=None, sweeps=None, annotations=None, seed=0):
    random = np.random.default_rng(seed)
    if cameras is None:
        cameras = (make_camera(), make_camera("CAM_BACK", yaw=np.pi))
    if sweeps is None:
        cloud = random.uniform([-40, -40, -2, 0, 0], [40, 40, 2, 255, 31], (2000, 5))
        sweeps = (make_sweep(cloud), make_sweep(cloud[:500], 50_000))
    if annotations is None:
        center = random.uniform([-30, -30, 0], [30, 30, 1], (12, 3))
        size = random.uniform([1, 0.5, 1], [6, 3, 3], (12, 3))
        annotations = make_annotations(center, size, random.uniform(-3, 3, 12))
    return Frame(
        token, "scene-0001", "boston-seaport", 1_000_000, pose(600, 900, 0, 0.7),
        tuple(cameras), tuple(sweeps), annotations,
    )  # fmt: skip


class Reader:
    """A reader over made frames; indices in ``broken`` cannot be read."""

    def __init__(self, num_frames=6, broken=()):
        self.broken = broken
        self.frames = [make_frame(f"frame{i}", seed=i) for i in range(num_frames)]
        self.tokens = tuple(frame.token for frame in self.frames)

    def __len__(self):
        return len(self.frames)

    def __getitem__(self, index):
        if index in self.broken:
            camera = replace(self.frames[index].cameras[0], load=Broken(self.tokens[index]))
            return replace(self.frames[index], cameras=(camera,))
        return self.frames[index]


@dataclass(frozen=True)
class Broken:
    """A loader of a file that is not there."""

    name: str

    def __call__(self, reduction=1):
        raise DataError(f"samples/{self.name}.jpg is truncated; copy it again")
