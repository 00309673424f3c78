"""The voxel grid of occupancy: a BEV grid with a height."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .grid import BEVGrid, num_cells
from .threads import compiled_in_order


@dataclass(frozen=True)
class VoxelGrid:
    """Cubic voxels in a named frame; volumes on it are (..., X, Y, Z), x first.

    Args:
        x_range: lower and upper edge along x, metres; the upper edge itself is outside.
        y_range: the same along y.
        z_range: the same along z.
        voxel_size: edge of a voxel, metres.
    """

    x_range: tuple[float, float]
    y_range: tuple[float, float]
    z_range: tuple[float, float]
    voxel_size: float

    def __post_init__(self) -> None:
        for name in ("x_range", "y_range", "z_range"):
            low, high = map(float, getattr(self, name))
            object.__setattr__(self, name, (low, high))
            num_cells(f"grid.{name}", high - low, self.voxel_size, "voxel_size")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of voxels along x, y and z."""
        spans = (high - low for low, high in (self.x_range, self.y_range, self.z_range))
        return tuple(round(span / self.voxel_size) for span in spans)  # type: ignore[return-value]

    @property
    def low(self) -> NDArray[np.float64]:
        """(3,) the lowest corner, metres."""
        return np.array([self.x_range[0], self.y_range[0], self.z_range[0]])

    @property
    def bev(self) -> BEVGrid:
        """The columns of voxels as cells on the ground."""
        return BEVGrid(self.x_range, self.y_range, self.voxel_size)

    def to_voxels(self, points: NDArray) -> NDArray[np.float64]:
        """(..., 3) metres to fractional voxels; voxel (i, j, k)'s middle is (i, j, k) + 0.5."""
        return (points - self.low) / self.voxel_size

    def to_metres(self, voxels: NDArray) -> NDArray[np.float64]:
        """Fractional voxels to metres, the inverse of :meth:`to_voxels`."""
        return voxels * self.voxel_size + self.low


def nearest_voxels(
    target: VoxelGrid, source: VoxelGrid, source_from_target: NDArray[np.float64]
) -> NDArray[np.int32]:
    """Which voxel of ``source`` holds the middle of every voxel of ``target``.

    Args:
        target: the grid to fill.
        source: the grid of the values, in another frame.
        source_from_target: (4, 4) between the grids' frames; may turn, scale and mirror.

    Returns:
        ``target.shape`` int32 flat indices (i * Y + j) * Z + k into ``source``, -1 outside it.
    """
    matrix = np.eye(4)
    matrix[:3] = source_from_target[:3]
    # From voxels straight to voxels: one affine map.
    to_metres, to_voxels = np.eye(4), np.eye(4)
    to_metres[:3, :3] *= target.voxel_size
    to_metres[:3, 3] = target.low + target.voxel_size / 2
    to_voxels[:3, :3] /= source.voxel_size
    to_voxels[:3, 3] = -source.low / source.voxel_size
    index = np.empty(target.shape, np.int32)
    _nearest(to_voxels @ matrix @ to_metres, np.array(source.shape), index)
    return index


@compiled_in_order
def _nearest(matrix, shape, index):
    for i in range(index.shape[0]):
        for j in range(index.shape[1]):
            for k in range(index.shape[2]):
                flat = 0
                for axis in range(3):
                    row = matrix[axis]
                    # Middles of equal grids fall on .5, far from a border and its rounding.
                    cell = int(np.floor(row[0] * i + row[1] * j + row[2] * k + row[3]))
                    if cell < 0 or cell >= shape[axis] or flat < 0:
                        flat = -1
                    else:
                        flat = flat * shape[axis] + cell
                index[i, j, k] = flat


# The grids of published labels. Occ3D's is in the ego frame, the others in LIDAR_TOP's.
OCC3D_GRID = VoxelGrid((-40.0, 40.0), (-40.0, 40.0), (-1.0, 5.4), 0.4)
SURROUNDOCC_GRID = VoxelGrid((-50.0, 50.0), (-50.0, 50.0), (-5.0, 3.0), 0.5)
OPENOCCUPANCY_GRID = VoxelGrid((-51.2, 51.2), (-51.2, 51.2), (-5.0, 3.0), 0.2)
