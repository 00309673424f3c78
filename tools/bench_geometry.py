"""Points that kernels are timed on: of published models' camera lifts, and of LiDAR sweeps."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bevstack.kernels.grid import BEVGrid


@dataclass(frozen=True)
class Geometry:
    """A camera lift: image size and stride, depth bins, and the grid it is pooled into."""

    name: str
    image_size: tuple[int, int]  # width, height after resize and crop
    resize: float  # from the 1600 x 900 original
    stride: int
    depth: tuple[float, float, float]  # from, to, step in metres
    grid: BEVGrid
    z_range: tuple[float, float] = (-10.0, 10.0)


BEVFUSION = Geometry(
    "BEVFusion", (704, 256), 0.48, 8, (1.0, 60.0, 0.5), BEVGrid((-54, 54), (-54, 54), 0.3)
)
LARGE = Geometry(
    "large", (1600, 640), 1.0, 16, (1.0, 60.0, 0.5), BEVGrid((-51.2, 51.2), (-51.2, 51.2), 0.8)
)


def rig_of(data: Path) -> tuple[np.ndarray, np.ndarray]:
    """Calibration of the real key frame where that is at hand, of a made-up rig otherwise."""
    tables = data / "nuscenes-keyframe" / "v1.0-mini"
    return real_rig(tables) if has_real_rig(data) else made_up_rig()


def has_real_rig(data: Path) -> bool:
    return (data / "nuscenes-keyframe" / "v1.0-mini" / "calibrated_sensor.json").exists()


def real_rig(tables: Path) -> tuple[np.ndarray, np.ndarray]:
    """Intrinsics (6, 3, 3) and ego_from_camera (6, 4, 4) from a nuScenes calibration table.

    The table lists all calibrations of the scene; the first six cameras belong together.
    """
    sensors = json.loads((tables / "calibrated_sensor.json").read_text())
    cameras = [sensor for sensor in sensors if sensor["camera_intrinsic"]][:6]
    intrinsics = np.array([camera["camera_intrinsic"] for camera in cameras])
    poses = np.tile(np.eye(4), (len(cameras), 1, 1))
    for pose, camera in zip(poses, cameras):
        w, x, y, z = camera["rotation"]
        pose[:3, :3] = [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
        pose[:3, 3] = camera["translation"]
    return intrinsics, poses


def made_up_rig() -> tuple[np.ndarray, np.ndarray]:
    """Six cameras around a car, much like nuScenes' rig, where no calibration is at hand."""
    # Focal length in pixels; yaw in degrees; x, y in metres; all 1.5 m above the ground.
    rig = [
        *((1266, 0, 1.70, 0.0), (1260, -55, 1.55, -0.5), (1272, 55, 1.52, 0.5)),
        *((809, 180, 0.03, 0.0), (1257, 110, 1.04, 0.48), (1260, -110, 1.02, -0.48)),
    ]
    intrinsics = np.array([[[f, 0, 816], [0, f, 491], [0, 0, 1.0]] for f, *_ in rig])
    poses = np.tile(np.eye(4), (len(rig), 1, 1))
    for pose, (_, degrees, x, y) in zip(poses, rig):
        c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        # Columns: the camera's right, down and forward axes, in the ego frame.
        pose[:3, :3] = np.array([[s, 0, c], [-c, 0, s], [0, -1, 0]])
        pose[:3, 3] = x, y, 1.5
    return intrinsics, poses


def frustum_cells(geometry: Geometry, intrinsics: np.ndarray, poses: np.ndarray) -> np.ndarray:
    """Cell of every frustum point: (N, D, H, W) int64, -1 outside."""
    width, height = geometry.image_size
    W, H = width // geometry.stride, height // geometry.stride
    u, v = np.linspace(0, width - 1, W), np.linspace(0, height - 1, H)
    # Cropped in the middle horizontally and at the top, as published.
    u_raw = (u + max(0, int(1600 * geometry.resize) - width) // 2) / geometry.resize
    v_raw = (v + max(0, int(900 * geometry.resize) - height)) / geometry.resize
    d = np.arange(*geometry.depth)
    pixel = np.stack([*np.meshgrid(u_raw, v_raw), np.ones((H, W))], axis=-1)
    ray = np.einsum("nij,hwj->nhwi", np.linalg.inv(intrinsics), pixel)
    ray = np.einsum("nij,nhwj->nhwi", poses[:, :3, :3], ray)
    xyz = d[None, :, None, None, None] * ray[:, None] + poses[:, None, None, None, :3, 3]
    cell = geometry.grid.flat_cell(xyz[..., 0], xyz[..., 1])
    low, high = geometry.z_range
    return np.where((xyz[..., 2] >= low) & (xyz[..., 2] < high), cell, -1)


def ten_sweeps(data: Path, num_points: int = 250_000) -> np.ndarray:
    """(P, 5) points: a real sweep, repeated as the vehicle moves on; random ones without data."""
    random = np.random.default_rng(0)
    files = sorted(data.glob("nuscenes-keyframe/samples/LIDAR_TOP/*.bin"))
    if files:
        sweep = np.fromfile(files[0], np.float32).reshape(-1, 5)
    else:
        distance, angle = random.gamma(2, 8, 34_000), random.uniform(-np.pi, np.pi, 34_000)
        x, y = distance * np.cos(angle), distance * np.sin(angle)
        sweep = np.stack([x, y, random.normal(-1.5, 0.7, 34_000), x * 0, x * 0], 1)
    sweeps = []
    for k in range(10):
        moved = sweep.astype(np.float32)
        moved[:, :3] += random.normal((0.35 * k, 0, 0), 0.02, (len(moved), 3))
        moved[:, 4] = 0.05 * k
        sweeps.append(moved)
    return np.concatenate(sweeps)[:num_points]
