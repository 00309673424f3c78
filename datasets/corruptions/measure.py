"""How much a corruption changes a frame; what was corrupted is never mistaken for clean data."""

from __future__ import annotations

from dataclasses import astuple, dataclass

import numpy as np
from numpy.typing import NDArray

from ..camera_models import Pinhole
from ..frame import Camera, Frame


@dataclass(frozen=True)
class CloudChange:
    """What became of one cloud."""

    points: float  # of the clean cloud
    lost: float  # share of the points; negative where there are more than before
    altered: float  # share of the clean points that are not in the changed cloud as they were
    range_shift: float  # mean range minus the clean cloud's, metres
    intensity_scale: float  # mean intensity over the clean cloud's


def cloud_change(clean: NDArray[np.float32], changed: NDArray[np.float32]) -> CloudChange:
    """Compare two clouds (P, 5) and (Q, 5); the order of points does not matter."""
    before, after = len(clean), len(changed)
    kept = np.isin(_rows(clean), _rows(changed)).sum() if before else 0
    return CloudChange(
        points=before,
        lost=1 - after / before if before else 0.0,
        altered=1 - float(kept) / before if before else 0.0,
        range_shift=_mean_range(changed) - _mean_range(clean),
        intensity_scale=float(_mean(changed[:, 3]) / (_mean(clean[:, 3]) or 1.0)),
    )


def pixel_change(clean: NDArray[np.uint8], changed: NDArray[np.uint8]) -> float:
    """Mean absolute difference of two images, of 255."""
    return float(np.abs(clean.astype(np.int16) - changed).mean())


@dataclass(frozen=True)
class FrameChange:
    """What became of a frame; means over its clouds and its images."""

    cloud: CloudChange | None  # None without sweeps
    lidar_damage: float  # see cloud_damage
    camera_damage: float  # see pixel_change


def frame_change(clean: Frame, changed: Frame) -> FrameChange:
    """Compare two frames sensor by sensor; loads the sensor data."""
    clouds = [(a.load(), b.load()) for a, b in zip(clean.sweeps, changed.sweeps)]
    changes = [cloud_change(*pair) for pair in clouds]
    images = [pixel_change(a.load(), b.load()) for a, b in zip(clean.cameras, changed.cameras)]
    mean = None
    if changes:
        mean = CloudChange(*(np.mean(v).item() for v in zip(*map(astuple, changes))))
    damage = [cloud_damage(*pair) for pair in clouds]
    return FrameChange(mean, float(np.mean(damage or [0])), float(np.mean(images or [0])))


def cloud_damage(clean: NDArray[np.float32], changed: NDArray[np.float32]) -> float:
    """How far two clouds (P, 5) and (Q, 5) are apart, metres.

    The Chamfer distance: the mean distance of points to the nearest point of the other cloud, one
    way plus the other, each point's at most 10 m; a full step of intensity counts as 5 m. Some
    2,000 points of each stand for all.
    """
    from scipy.spatial import KDTree

    scale = np.array([1, 1, 1, 5 / 255], np.float32)
    a, b = clean[:, :4] * scale, changed[:, :4] * scale
    if not (len(a) and len(b)):
        return 0.0 if len(a) == len(b) else 20.0
    there = KDTree(b).query(a[:: 1 + len(a) // 2000], distance_upper_bound=10)[0]
    back = KDTree(a).query(b[:: 1 + len(b) // 2000], distance_upper_bound=10)[0]
    return float(np.minimum(there, 10).mean() + np.minimum(back, 10).mean())


def differs(clean: Frame, changed: Frame) -> bool:
    """Whether a model would be given anything else; loads the sensor data."""
    if len(clean.sweeps) != len(changed.sweeps) or len(clean.cameras) != len(changed.cameras):
        return True
    for before, after in zip(clean.cameras, changed.cameras):
        if not _same_place(before, after) or not _same_model(before, after):
            return True
    for before, after in zip(clean.sweeps, changed.sweeps):
        if not _same_place(before, after, "ego_from_lidar"):
            return True
    sensors = (*zip(clean.sweeps, changed.sweeps), *zip(clean.cameras, changed.cameras))
    return any(
        before.load is not after.load and not np.array_equal(before.load(), after.load())
        for before, after in sensors
    )


def _same_place(before, after, mounting: str = "ego_from_camera") -> bool:
    return (
        before.timestamp_us == after.timestamp_us
        and np.array_equal(getattr(before, mounting), getattr(after, mounting))
        and np.array_equal(before.global_from_ego, after.global_from_ego)
    )


def _same_model(before: Camera, after: Camera) -> bool:
    if isinstance(before.model, Pinhole) and isinstance(after.model, Pinhole):
        return np.array_equal(before.model.intrinsic, after.model.intrinsic)
    return before.model is after.model


def _rows(cloud: NDArray[np.float32]) -> NDArray:
    return np.ascontiguousarray(cloud, np.float32).view("V20").ravel()


def _mean_range(cloud: NDArray[np.float32]) -> float:
    return _mean(np.linalg.norm(cloud[:, :3].astype(np.float64), axis=1))


def _mean(values: NDArray) -> float:
    return float(values.mean()) if len(values) else 0.0
