"""The inputs of a LiDAR graph of voxels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...kernels.grid import BEVGrid
from ...kernels.numba_neighbors import strided_rows, submanifold_rows
from ...kernels.numba_voxelize import voxelize_points
from .manifest import TableSpec, VoxelSpec


class VoxelInputs:
    """Makes the inputs of the graph from a cloud.

    ``voxel_features`` (V, 5), the mean of the points; a neighbour table (U, K) per geometry, -1
    where there is no neighbour; ``voxel_place`` (X * Y * Z,), the last level's voxel of every
    cell, -1 for none.

    Args:
        spec: of the manifest.
        grid: the BEV grid of the model.
        num_threads: threads to use, by default all cores of this process.
    """

    def __init__(self, spec: VoxelSpec, grid: BEVGrid, num_threads: int | None = None):
        self.spec, self.grid, self.num_threads = spec, grid, num_threads

    def __call__(self, points: NDArray[np.float32]) -> dict[str, NDArray] | None:
        """All inputs by name, from (P, 5) points; None if no voxel holds a point."""
        spec, (low, high) = self.spec, self.spec.height_range
        (x0, x1), (y0, y1) = self.grid.x_range, self.grid.y_range
        # The grid has a cell more along z than the range, as SECOND has it.
        shape = spec.shape[2], spec.shape[1], round((high - low) / spec.voxel_size[2])
        mean, cells, counts, _ = voxelize_points(
            *(points, np.zeros(len(points), np.int64), 1, (x0, y0, low, x1, y1, high)),
            *(spec.voxel_size, shape, spec.max_points, spec.max_voxels, self.num_threads),
        )
        if len(counts) == 0:
            return None
        inputs = {"voxel_features": mean}
        coordinates = np.ascontiguousarray(cells[:, [0, 3, 2, 1]], np.int32)
        levels = [(coordinates, spec.shape)]
        for table in spec.tables:
            inputs[table.input] = self._table(table, levels)
        (_, z, y, x), (Z, Y, X) = levels[-1][0].T.astype(np.int64), levels[-1][1]
        place = np.full(X * Y * Z, -1, np.int32)
        place[(x * Y + y) * Z + z] = np.arange(len(x))
        inputs["voxel_place"] = place
        return inputs

    def _table(self, table: TableSpec, levels: list) -> NDArray:
        """Rows (U, K) int32; a table that is not submanifold adds its outputs to ``levels``."""
        coordinates, shape = levels[table.level]
        if table.submanifold:
            return submanifold_rows(
                coordinates, shape, 1, table.kernel, table.dilation, self.num_threads
            )
        steps = table.kernel, table.stride, table.padding, table.dilation
        out_shape = tuple(
            (n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in zip(shape, *steps)
        )
        out, rows = strided_rows(coordinates, shape, out_shape, 1, *steps, self.num_threads)
        levels.append((out, out_shape))
        return rows
