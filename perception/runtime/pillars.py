"""The inputs of a LiDAR graph of pillars."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...kernels.grid import BEVGrid
from ...kernels.numba_segments import bucket_segments, group_rows
from ...kernels.numba_voxelize import voxelize_points
from ...kernels.threads import compiled_in_order
from .manifest import PillarSpec

POINT_FEATURES = 8  # as in PillarEncoder


class PillarInputs:
    """Makes the inputs of the graph from a cloud.

    ``point_features`` (P, 8); ``pillar_points_0`` ... and ``pillar_place`` (V,), which points a
    pillar has (``Segments``); ``pillar_heights`` (V, bins + 1), logarithms of the number of points
    by height and in all; ``pillar_cells`` (X * Y,), the pillar of every cell, -1 for none.

    Args:
        spec: of the manifest.
        grid: the BEV grid of the model.
        num_threads: threads to use, by default all cores of this process.
    """

    def __init__(self, spec: PillarSpec, grid: BEVGrid, num_threads: int | None = None):
        self.spec, self.num_threads = spec, num_threads
        self.grid = BEVGrid(grid.x_range, grid.y_range, spec.pillar_size)

    def __call__(self, points: NDArray[np.float32]) -> dict[str, NDArray] | None:
        """All inputs by name, from (P, 5) points; None if no pillar holds a point."""
        (x0, x1), (y0, y1), (z0, z1) = self.grid.x_range, self.grid.y_range, self.spec.height_range
        size, (nx, ny) = self.spec.pillar_size, self.grid.shape
        batch = np.zeros(len(points), np.int64)
        mean, coordinates, counts, pillar = voxelize_points(
            *(points, batch, 1, (x0, y0, z0, x1, y1, z1), (size, size, z1 - z0), (nx, ny, 1)),
            num_threads=self.num_threads,
        )
        if len(counts) == 0:
            return None
        bounds = np.array([x0, y0, size, z0, z1, (z0 + z1) / 2], np.float32)
        features = np.zeros((len(points), POINT_FEATURES), np.float32)
        heights = np.zeros((len(counts), self.spec.height_bins + 1), np.float32)
        _describe(points, pillar, coordinates, mean, bounds, features, heights)
        heights[:, -1] = counts
        points_of = bucket_segments(*group_rows(pillar, len(counts)), filler=None)
        cells = np.full(nx * ny, -1, np.int32)
        cells[coordinates[:, 1] * ny + coordinates[:, 2]] = np.arange(len(counts))
        return {
            "point_features": features,
            **{f"pillar_points_{i}": rows for i, rows in enumerate(points_of.buckets)},
            "pillar_place": points_of.place,
            "pillar_heights": np.log1p(heights),
            "pillar_cells": cells,
        }


@compiled_in_order
def _describe(points, pillar, coordinates, mean, bounds, features, heights):
    """What PillarEncoder computes of every point, in its order of operations."""
    x0, y0, size, z0, z1, middle = bounds
    half, two, most = np.float32(0.5), np.float32(2), np.float32(255)
    bins = heights.shape[1] - 1
    for p in range(len(points)):
        v = pillar[p]
        if v < 0:
            continue
        x, y, z = points[p, 0], points[p, 1], points[p, 2]
        features[p, 0] = (x - (x0 + (np.float32(coordinates[v, 1]) + half) * size)) / size
        features[p, 1] = (y - (y0 + (np.float32(coordinates[v, 2]) + half) * size)) / size
        features[p, 2] = (z - middle) / two
        features[p, 3] = x - mean[v, 0]
        features[p, 4] = y - mean[v, 1]
        features[p, 5] = z - mean[v, 2]
        features[p, 6] = points[p, 3] / most
        features[p, 7] = points[p, 4]
        place = np.int64(np.floor((z - z0) / (z1 - z0) * np.float32(bins)))
        heights[v, min(max(place, 0), bins - 1)] += np.float32(1)
