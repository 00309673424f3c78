"""RayIoU: what LiDAR-like rays meet first, in truth and prediction (SparseOcc's protocol).

Voxels behind a surface cannot be seen, and a thick prediction costs a voxel metric nothing under a
visibility mask. A ray counts where it meets something in the truth; it is right where it meets the
same class in the prediction, at a depth off by less than a threshold.

Source: SparseOcc af4d9df, ``ray_metrics.py`` and ``ego_pose_dataset.py`` (rays, origins, counts).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...datasets.geometry import apply, inverse
from ...datasets.nuscenes.classes import FREE
from ...kernels.numba_rays import first_hits
from ...kernels.voxel_grid import VoxelGrid

RAY_THRESHOLDS = (1.0, 2.0, 4.0)  # metres
MAX_ORIGINS = 8
REACH = 39.0  # metres along x and y in which origins count


def ray_directions() -> NDArray[np.float64]:
    """(14040, 3): 39 pitches, dense near the horizon, times 360 azimuths, of length 1."""
    pitches = [-(np.pi / 2 - np.arctan(k)) for k in range(1, 11)]
    while pitches[-1] < 0.21:  # in the protocol too, the last one is above
        pitches.append(pitches[-1] + (pitches[-1] - pitches[-2]))
    pitch, azimuth = np.meshgrid(pitches, np.deg2rad(np.arange(360.0)), indexing="ij")
    flat = np.cos(pitch)
    axes = flat * np.cos(azimuth), flat * np.sin(azimuth), np.sin(pitch)
    return np.asarray(np.stack(axes, -1).reshape(-1, 3), np.float64)


def ray_origins(
    global_from_ego: NDArray[np.float64], lidar_positions: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Where rays of a frame start: where the LiDAR was at key frames of the scene, 8 at most.

    Args:
        global_from_ego: (4, 4) of the frame.
        lidar_positions: (F, 3) global, of all key frames of the scene, in order.

    Returns:
        (O, 3) in the frame's ego frame; O may be 0.
    """
    local = apply(inverse(global_from_ego), lidar_positions.reshape(-1, 3))
    near = local[(np.abs(local[:, :2]) < REACH).all(1)]
    if len(near) > MAX_ORIGINS:
        near = near[np.linspace(0, len(near) - 1, MAX_ORIGINS).round().astype(int)]
    return near


class RayIoU:
    """Accumulates ray counts; ``hits``, ``truths`` and ``found`` of parts may be added up."""

    def __init__(self) -> None:
        self.hits = np.zeros((len(RAY_THRESHOLDS), FREE), np.int64)  # by threshold and class
        self.truths, self.found = np.zeros(FREE, np.int64), np.zeros(FREE, np.int64)
        self._directions = ray_directions()

    def update(
        self,
        predicted: NDArray[np.uint8],
        truth: NDArray[np.uint8],
        grid: VoxelGrid,
        origins: NDArray[np.float64],
    ) -> None:
        """Add one sample.

        Args:
            predicted: (X, Y, Z) classes.
            truth: the same.
            grid: of both.
            origins: (O, 3) metres in the grid's frame.
        """
        start = grid.to_voxels(origins)
        label, depth = first_hits(truth, FREE, start, self._directions)
        counted = label != FREE
        found, found_depth = first_hits(predicted, FREE, start, self._directions, counted)
        label, found = label[counted], found[counted]
        apart = np.abs(depth[counted] - found_depth[counted]) * grid.voxel_size
        same = label == found
        self.truths += np.bincount(label, minlength=FREE)
        self.found += np.bincount(found[found != FREE], minlength=FREE)
        for row, threshold in zip(self.hits, RAY_THRESHOLDS):
            row += np.bincount(label[same & (apart < threshold)], minlength=FREE)

    def ious(self) -> dict[float, list[float]]:
        """By threshold, IoU of every class; NaN for classes in neither truth nor prediction."""
        union = self.truths + self.found - self.hits
        values = np.where(union > 0, self.hits / np.maximum(union, 1), np.nan)
        return dict(zip(RAY_THRESHOLDS, values.tolist()))
