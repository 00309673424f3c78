"""Occupancy labels of one moment, and their way onto the model's grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..kernels.voxel_grid import VoxelGrid, nearest_voxels
from .geometry import inverse
from .nuscenes.classes import FREE


@dataclass(frozen=True)
class OccupancyLabels:
    """A class for every voxel, and which voxels a sensor has observed."""

    semantics: NDArray[np.uint8]  # (X, Y, Z) index into OCCUPANCY_CLASSES, FREE where nothing is
    mask_lidar: NDArray[np.uint8]  # (X, Y, Z) 1: observed by the LiDAR, so the label is trusted
    mask_camera: NDArray[np.uint8]  # (X, Y, Z) 1: observed by a camera too
    grid: VoxelGrid
    grid_from_ego: NDArray[np.float64]  # (4, 4) ego at the key time -> the frame of the grid

    def on_grid(self, grid: VoxelGrid, target_from_ego: NDArray[np.float64]) -> OccupancyLabels:
        """The labels on another grid, in another frame: each voxel takes the one at its middle.

        What lies outside these labels is free and not observed.

        Args:
            grid: the grid to fill.
            target_from_ego: (4, 4) ego at the key time -> the frame of ``grid``.
        """
        same_frame = np.array_equal(self.grid_from_ego, target_from_ego)
        if same_frame and grid == self.grid:
            return self
        target = np.asarray(target_from_ego, np.float64)
        source_from_target = self.grid_from_ego @ inverse(target)
        index = nearest_voxels(grid, self.grid, source_from_target)
        outside = index < 0
        index[outside] = 0

        def moved(volume: NDArray[np.uint8], nothing: int) -> NDArray[np.uint8]:
            values = volume.ravel()[index]
            values[outside] = nothing
            return values

        return OccupancyLabels(
            moved(self.semantics, FREE),
            moved(self.mask_lidar, 0),
            moved(self.mask_camera, 0),
            grid,
            target,
        )


class OccupancyLoader(Protocol):
    """Gives the occupancy labels of a frame."""

    def __call__(self) -> OccupancyLabels:
        """Read them."""
        ...
