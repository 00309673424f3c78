"""Occupancy metrics: mIoU under each mask, IoU of what is occupied, and RayIoU.

mIoU is Occ3D's: one confusion matrix over the whole set, IoU per class, mean over the classes
other than free that occur (in truth or prediction). The published figures count the voxels that a
camera has observed; the same over the voxels that the LiDAR has observed, and over all, are other
numbers, so the mask always stands beside the figure.

Sources: CVPR2023-3D-Occupancy-Prediction 4781df9 (mIoU), SparseOcc af4d9df (RayIoU).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...datasets.nuscenes.classes import FREE, OCCUPANCY_CLASSES
from ...datasets.occupancy import OccupancyLabels
from .ray_iou import RayIoU

MASKS = ("camera", "lidar", "none")  # which voxels count: observed by a camera, the LiDAR; all
MASK_TEXTS = {
    "camera": "voxels seen by a camera",
    "lidar": "voxels seen by the LiDAR",
    "none": "all voxels",
}


@dataclass(frozen=True)
class OccupancyMetrics:
    """What was found out over a whole set; NaN stands for a class that does not occur."""

    ious: dict[str, dict[str, float]]  # mask -> class -> IoU
    occupied_ious: dict[str, float]  # mask -> IoU of occupied against free
    ray_ious: dict[float, dict[str, float]]  # depth threshold in metres -> class -> IoU
    num_samples: int

    def mean_iou(self, mask: str = "camera") -> float:
        """Mean over the classes under a mask; the published figure is that of the cameras."""
        return mean_of_known(self.ious[mask].values())

    def mean_ray_iou(self, threshold: float) -> float:
        """RayIoU at a depth threshold: mean over the classes."""
        return mean_of_known(self.ray_ious[threshold].values())

    @property
    def ray_iou(self) -> float:
        """RayIoU: mean over classes and thresholds."""
        return mean_of_known(v for by_class in self.ray_ious.values() for v in by_class.values())

    def to_json(self) -> dict:
        """``mIoU`` (camera mask) and ``RayIoU`` first, then the details; None for NaN."""
        return {
            "mIoU": _or_none(self.mean_iou()),
            "RayIoU": _or_none(self.ray_iou),
            "mIoU_by_mask": {mask: _or_none(self.mean_iou(mask)) for mask in MASKS},
            "IoU_by_mask": {mask: _or_none(v) for mask, v in self.occupied_ious.items()},
            "RayIoU_by_metres": {f"{t:g}": _or_none(self.mean_ray_iou(t)) for t in self.ray_ious},
            "label_ious": {m: _without_nan(by_class) for m, by_class in self.ious.items()},
            "label_ray_ious": {f"{t:g}": _without_nan(row) for t, row in self.ray_ious.items()},
            "num_samples": self.num_samples,
        }


class OccupancyIoU:
    """Accumulates voxel counts; ``counts`` and ``num_samples`` of parts may be added up."""

    def __init__(self) -> None:
        size = FREE + 1
        self.counts = np.zeros((len(MASKS), size, size), np.int64)  # mask, truth, prediction
        self.num_samples = 0

    def update(
        self,
        predicted: NDArray[np.uint8],
        truth: NDArray[np.uint8],
        mask_lidar: NDArray,
        mask_camera: NDArray,
    ) -> None:
        """Add one sample; all arguments are (X, Y, Z) on one grid.

        Raises:
            ValueError: if shapes differ.
        """
        if not predicted.shape == truth.shape == mask_lidar.shape == mask_camera.shape:
            raise ValueError(
                f"predicted occupancy is {predicted.shape}, labels {truth.shape}, masks "
                f"{mask_lidar.shape} and {mask_camera.shape}; bring them onto one grid"
            )
        size = FREE + 1
        pair = truth.astype(np.int64) * size + predicted
        # 0 seen by nobody, 1 by the LiDAR, 2 by a camera; a camera's voxels need not be LiDAR's.
        camera, lidar = np.asarray(mask_camera, bool), np.asarray(mask_lidar, bool)
        level = camera * 2 + lidar
        by_level = np.bincount((level * size * size + pair).ravel(), minlength=4 * size * size)
        nobody, lidar_only, camera_only, both = by_level.reshape(4, size, size)
        everywhere = nobody + lidar_only + camera_only + both
        self.counts += np.stack([camera_only + both, lidar_only + both, everywhere])
        self.num_samples += 1

    def ious(self) -> dict[str, dict[str, float]]:
        """IoU by mask and class; NaN for classes in neither truth nor prediction."""
        hit = np.diagonal(self.counts, axis1=1, axis2=2)[:, :FREE]
        union = (self.counts.sum(2) + self.counts.sum(1))[:, :FREE] - hit
        values = np.where(union > 0, hit / np.maximum(union, 1), np.nan)
        return {
            mask: dict(zip(OCCUPANCY_CLASSES, row)) for mask, row in zip(MASKS, values.tolist())
        }

    def occupied_ious(self) -> dict[str, float]:
        """IoU of occupied against free by mask; NaN where nothing is."""
        hit = self.counts[:, :FREE, :FREE].sum((1, 2))
        union = self.counts.sum((1, 2)) - self.counts[:, FREE, FREE]
        return dict(zip(MASKS, np.where(union > 0, hit / np.maximum(union, 1), np.nan).tolist()))


class OccupancyEvaluation:
    """Everything about the occupancy of a set, sample by sample."""

    def __init__(self) -> None:
        self.voxels, self.rays = OccupancyIoU(), RayIoU()

    def update(
        self, predicted: OccupancyLabels, truth: OccupancyLabels, ray_origins: NDArray[np.float64]
    ) -> None:
        """Add one sample; the prediction is brought into the frame of the labels.

        Args:
            predicted: its masks are ignored.
            truth: the labels as they were read.
            ray_origins: (O, 3) in the ego frame, see :func:`.ray_iou.ray_origins`.
        """
        found = predicted.on_grid(truth.grid, truth.grid_from_ego).semantics
        self.voxels.update(found, truth.semantics, truth.mask_lidar, truth.mask_camera)
        origins = ray_origins @ truth.grid_from_ego[:3, :3].T + truth.grid_from_ego[:3, 3]
        self.rays.update(found, truth.semantics, truth.grid, origins)

    def compute(self) -> OccupancyMetrics:
        """The metrics of everything added so far."""
        return OccupancyMetrics(
            self.voxels.ious(),
            self.voxels.occupied_ious(),
            {t: dict(zip(OCCUPANCY_CLASSES, row)) for t, row in self.rays.ious().items()},
            self.voxels.num_samples,
        )


def mean_of_known(values: Iterable[float]) -> float:
    """Mean of the numbers that are not NaN; NaN if there is none."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value


def _without_nan(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: _or_none(value) for name, value in values.items()}
