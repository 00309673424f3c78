"""BEV pooling on the CPU: the plan, the sum and its gradients, on numpy arrays, without torch.

The points of one camera, image column and depth bin that fall in the same cell on neighbouring
rows are a *run*. On a nuScenes rig a (column, bin) line of 32 rows meets at most 4 cells, so that
1.6 million points are 121 thousand runs: the plan is an order of 16 times smaller than the points,
and a cell (forward) or a gradient row (backward) stays in the first-level cache for a whole run.

Forward goes cell by cell: each is written once, zeros included, by one thread, straight into
fresh memory. Backward goes column by column: a column's features serve all its bins.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .threads import compiled, in_parallel

# P = N * D * H * W points, R runs, G cells. 32 bits: checked where the plan is made.
Array = NDArray


class RunArrays(NamedTuple):
    """The runs twice: grouped by cell, and grouped by camera and image column."""

    cell_first: Array  # (G + 1,) int32, runs of cell g: cell_first[g] to cell_first[g + 1]
    by_cell: Array  # (R, 2) int32: first point, number of points
    column_first: Array  # (N * W + 1,) int32, the same for column n * W + w
    by_column: Array  # (R, 4) int32: first point, number of points, cell, its row in by_cell


def find_runs(cell: Array, num_cells: int, num_threads: int | None = None) -> RunArrays:
    """Group frustum points into runs.

    Args:
        cell: (N, D, H, W) int64, -1 outside the grid; C-contiguous.
        num_cells: number of cells G; every entry of ``cell`` must be below it.
        num_threads: threads to use, by default all cores of this process.
    """
    columns = cell.shape[0] * cell.shape[3]
    count = np.zeros(columns + 1, np.int32)
    in_parallel(lambda a, b: _count_runs(cell, num_cells, count, a, b), columns, num_threads)
    if (count < 0).any():
        raise ValueError(f"cell holds an index of {num_cells} cells or above, or below -1")
    column_first = np.cumsum(count, dtype=np.int32)
    by_column = np.empty((column_first[-1], 4), np.int32)
    in_parallel(lambda a, b: _list_runs(cell, column_first, by_column, a, b), columns, num_threads)
    cell_first = np.zeros(num_cells + 1, np.int32)
    by_cell = np.empty((len(by_column), 2), np.int32)
    _sort_by_cell(by_column, cell_first, by_cell)
    return RunArrays(cell_first, by_cell, column_first, by_column)


@compiled
def _count_runs(cell, num_cells, count, low, high):
    _, D, H, W = cell.shape
    for column in range(low, high):
        n, w = divmod(column, W)
        total = 0
        broken = False
        for d in range(D):
            last = np.int64(-1)
            for h in range(H):
                now = cell[n, d, h, w]
                broken |= now < -1 or now >= num_cells
                total += now >= 0 and now != last
                last = now
        count[column + 1] = -1 if broken else total


@compiled
def _list_runs(cell, column_first, by_column, low, high):
    _, D, H, W = cell.shape
    for column in range(low, high):
        n, w = divmod(column, W)
        run = column_first[column] - 1
        for d in range(D):
            last = np.int64(-1)
            for h in range(H):
                now = cell[n, d, h, w]
                if now >= 0:
                    if now != last:
                        run += 1
                        by_column[run, 0] = ((n * D + d) * H + h) * W + w
                        by_column[run, 1] = 0
                        by_column[run, 2] = now
                    by_column[run, 1] += 1
                last = now


@compiled
def _sort_by_cell(by_column, cell_first, by_cell):
    # A counting sort: stable, so that the order of each sum is fixed.
    for run in range(len(by_column)):
        cell_first[by_column[run, 2] + 1] += 1
    for g in range(len(cell_first) - 1):
        cell_first[g + 1] += cell_first[g]
    place = cell_first[:-1].copy()
    for run in range(len(by_column)):
        g = by_column[run, 2]
        by_cell[place[g], 0] = by_column[run, 0]
        by_cell[place[g], 1] = by_column[run, 1]
        by_column[run, 3] = place[g]
        place[g] += 1


def pool_runs(
    depth: Array, features: Array, runs: RunArrays, num_threads: int | None = None
) -> Array:
    """Sum depth times features per cell.

    Args:
        depth: (N, D, H, W) float32 or float64, C-contiguous.
        features: (N, H, W, C) of the same type, C-contiguous.
        runs: from :func:`find_runs`.
        num_threads: threads to use, by default all cores of this process.

    Returns:
        (G, C).
    """
    num_cells = len(runs.cell_first) - 1
    pooled = np.empty((num_cells, features.shape[-1]), features.dtype)

    def work(low: int, high: int) -> None:
        _pool_cells(depth, features, runs.cell_first, runs.by_cell, pooled, low, high)

    in_parallel(work, num_cells, num_threads, smallest=512)
    return pooled


@compiled
def _pool_cells(depth, features, cell_first, by_cell, pooled, low, high):
    N, D, H, W = depth.shape
    C = features.shape[-1]
    weights = depth.reshape(N * D * H * W)
    pixels = features.reshape(N * H * W, C)
    for g in range(low, high):
        total = pooled[g]
        total[:] = 0
        for run in range(cell_first[g], cell_first[g + 1]):
            point = np.int64(by_cell[run, 0])
            rows = by_cell[run, 1]
            pixel = point // (D * H * W) * (H * W) + point % (H * W)
            # Four rows at a time: the running sum is read and written a quarter as often.
            for _ in range(rows // 4):
                w0, w1 = weights[point], weights[point + W]
                w2, w3 = weights[point + 2 * W], weights[point + 3 * W]
                f0, f1 = pixels[pixel], pixels[pixel + W]
                f2, f3 = pixels[pixel + 2 * W], pixels[pixel + 3 * W]
                for c in range(C):
                    total[c] += (w0 * f0[c] + w1 * f1[c]) + (w2 * f2[c] + w3 * f3[c])
                point += 4 * W
                pixel += 4 * W
            for _ in range(rows % 4):
                w0, f0 = weights[point], pixels[pixel]
                for c in range(C):
                    total[c] += w0 * f0[c]
                point += W
                pixel += W


def pool_runs_backward(
    grad: Array, depth: Array, features: Array, runs: RunArrays, num_threads: int | None = None
) -> tuple[Array, Array]:
    """Gradients of :func:`pool_runs` to depth and features.

    Args:
        grad: (G, C) gradient of the result, C-contiguous.
        depth: (N, D, H, W) as in the forward pass.
        features: (N, H, W, C) as in the forward pass.
        runs: from :func:`find_runs`.
        num_threads: threads to use, by default all cores of this process.

    Returns:
        Gradients shaped like ``depth`` and ``features``.
    """
    grad_depth, grad_features = np.zeros_like(depth), np.zeros_like(features)

    def work(low: int, high: int) -> None:
        _backward_columns(
            *(grad, depth, features, runs.column_first, runs.by_column),
            *(grad_depth, grad_features, low, high),
        )

    in_parallel(work, len(runs.column_first) - 1, num_threads)
    return grad_depth, grad_features


@compiled
def _backward_columns(
    grad, depth, features, column_first, by_column, grad_depth, grad_features, low, high
):
    N, D, H, W = depth.shape
    C = features.shape[-1]
    P, pixel_count = N * D * H * W, N * H * W
    weights, grad_weights = depth.reshape(P), grad_depth.reshape(P)
    pixels, grad_pixels = features.reshape(pixel_count, C), grad_features.reshape(pixel_count, C)
    for run in range(column_first[low], column_first[high]):
        point = np.int64(by_column[run, 0])
        pixel = point // (D * H * W) * (H * W) + point % (H * W)
        grad_cell = grad[by_column[run, 2]]
        for _ in range(by_column[run, 1]):
            weight = weights[point]
            feature, grad_feature = pixels[pixel], grad_pixels[pixel]
            product = weight * 0
            for c in range(C):
                product += feature[c] * grad_cell[c]
                grad_feature[c] += weight * grad_cell[c]
            grad_weights[point] = product
            point += W
            pixel += W
