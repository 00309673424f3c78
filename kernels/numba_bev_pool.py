"""BEV pooling on the CPU: the plan, the sum and its gradients, on numpy arrays, without torch.

The points of one camera, image column and depth bin that fall in the same cell on neighbouring
rows are a *run*. On a nuScenes rig a (column, bin) line of 32 rows meets at most 4 cells, so that
1.6 million points are 91 thousand runs in the vehicle's frame, 121 thousand in LIDAR_TOP's, tilted
and with the cameras moved to its time: the plan is 13 to 17 times smaller than the points, and a
cell (forward) or a gradient row (backward) stays in the first-level cache for a whole run.

Forward goes cell by cell: each is written once, zeros included, by one thread, into fresh memory.
Other orders were tried on one core of a Xeon (Sapphire Rapids), in float32 with 80 channels,
milliseconds at BEVFusion's geometry / at the large one of ``tools/bench_geometry.py``: by cell
25 / 19; by column as on a GPU 49 / 16, as it fills the map with zeros first and comes back to it
run by run (and two threads would meet in a cell); by cell in tiles of 40 channels 44 / 38, of 16
83 / 57, as each tile walks through the runs again. Backward goes column by column: a column's
features serve all its bins.

numpy has no bfloat16: its bits are uint16 here, widened where they are used, since a float32 copy
of the map would cost more than the sum.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import types
from numba.extending import overload
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


def _wide(x) -> Any:
    """A number to sum with: that of bfloat16 bits in float32, any other itself."""


@overload(_wide)
def _(x):
    if isinstance(x, types.Integer):
        return lambda x: np.uint32(np.uint32(x) << np.uint32(16)).view(np.float32)
    return lambda x: x


def _put(x, out, place):
    """Store a sum, rounded to the nearest bfloat16 (ties to even) where ``out`` holds bits."""


@overload(_put)
def _(x, out, place):
    if not isinstance(out.dtype, types.Integer):

        def put(x, out, place):
            out[place] = x
    else:

        def put(x, out, place):
            bits = np.float32(x).view(np.uint32)
            odd = (bits >> np.uint32(16)) & np.uint32(1)
            rounded = np.uint32(bits + np.uint32(0x7FFF) + odd) >> np.uint32(16)
            # Rounded like a number, a NaN could become infinite.
            out[place] = np.uint16(0x7FC0) if x != x else np.uint16(rounded)

    return put


def _sum_type(*arrays: Array) -> type:
    return np.float64 if any(array.dtype == np.float64 for array in arrays) else np.float32


def pool_runs(
    depth: Array, features: Array, runs: RunArrays, num_threads: int | None = None
) -> Array:
    """Sum depth times features per cell, in float32 (float64 for float64).

    Args:
        depth: (N, D, H, W) float32, float64 or bfloat16 bits (uint16), C-contiguous.
        features: (N, H, W, C) of any of these types, C-contiguous.
        runs: from :func:`find_runs`.
        num_threads: threads to use, by default all cores of this process.

    Returns:
        (G, C) of the type of ``features``.
    """
    num_cells = len(runs.cell_first) - 1
    pooled = np.empty((num_cells, features.shape[-1]), features.dtype)

    def work(low: int, high: int) -> None:
        total = np.empty(features.shape[-1], _sum_type(depth, features))
        _pool_cells(depth, features, runs.cell_first, runs.by_cell, total, pooled, low, high)

    in_parallel(work, num_cells, num_threads, smallest=512)
    return pooled


@compiled
def _pool_cells(depth, features, cell_first, by_cell, total, pooled, low, high):
    N, D, H, W = depth.shape
    C = features.shape[-1]
    weights = depth.reshape(N * D * H * W)
    pixels = features.reshape(N * H * W, C)
    for g in range(low, high):
        total[:] = 0
        for run in range(cell_first[g], cell_first[g + 1]):
            point = np.int64(by_cell[run, 0])
            rows = by_cell[run, 1]
            pixel = point // (D * H * W) * (H * W) + point % (H * W)
            # Four rows at a time: the running sum is read and written a quarter as often.
            for _ in range(rows // 4):
                w0, w1 = _wide(weights[point]), _wide(weights[point + W])
                w2, w3 = _wide(weights[point + 2 * W]), _wide(weights[point + 3 * W])
                f0, f1 = pixels[pixel], pixels[pixel + W]
                f2, f3 = pixels[pixel + 2 * W], pixels[pixel + 3 * W]
                for c in range(C):
                    total[c] += (w0 * _wide(f0[c]) + w1 * _wide(f1[c])) + (
                        w2 * _wide(f2[c]) + w3 * _wide(f3[c])
                    )
                point += 4 * W
                pixel += 4 * W
            for _ in range(rows % 4):
                w0, f0 = _wide(weights[point]), pixels[pixel]
                for c in range(C):
                    total[c] += w0 * _wide(f0[c])
                point += W
                pixel += W
        row = pooled[g]
        for c in range(C):
            _put(total[c], row, c)


def pool_runs_backward(
    grad: Array, depth: Array, features: Array, runs: RunArrays, num_threads: int | None = None
) -> tuple[Array, Array]:
    """Gradients of :func:`pool_runs` to depth and features.

    Args:
        grad: (G, C) gradient of the result, of any type of :func:`pool_runs`, C-contiguous.
        depth: (N, D, H, W) as in the forward pass.
        features: (N, H, W, C) as in the forward pass.
        runs: from :func:`find_runs`.
        num_threads: threads to use, by default all cores of this process.

    Returns:
        Gradients shaped like ``depth`` and ``features``, of their types.
    """
    grad_depth, grad_features = np.zeros_like(depth), np.empty_like(features)
    C = features.shape[-1]

    def work(low: int, high: int) -> None:
        sum_type = _sum_type(grad, depth, features)
        column, cell = np.empty((depth.shape[2], C), sum_type), np.empty(C, sum_type)
        _backward_columns(
            *(grad, depth, features, runs.column_first, runs.by_column, column, cell),
            *(grad_depth, grad_features, low, high),
        )

    in_parallel(work, len(runs.column_first) - 1, num_threads)
    return grad_depth, grad_features


@compiled
def _backward_columns(
    grad,
    depth,
    features,
    column_first,
    by_column,
    column_total,  # (H, C) a column's sums, and
    grad_cell,  # (C,) a cell's gradient, in the type of the sums
    grad_depth,
    grad_features,
    low,
    high,
):
    N, D, H, W = depth.shape
    C = features.shape[-1]
    weights, grad_weights = depth.reshape(N * D * H * W), grad_depth.reshape(N * D * H * W)
    for column in range(low, high):
        n, w = divmod(column, W)
        column_total[:] = 0
        for run in range(column_first[column], column_first[column + 1]):
            point = np.int64(by_column[run, 0])
            top = point % (H * W) // W
            row_of_cell = grad[by_column[run, 2]]
            for c in range(C):
                grad_cell[c] = _wide(row_of_cell[c])
            for h in range(top, top + by_column[run, 1]):
                weight = _wide(weights[point])
                feature, total = features[n, h, w], column_total[h]
                product = weight * 0
                for c in range(C):
                    product += _wide(feature[c]) * grad_cell[c]
                    total[c] += weight * grad_cell[c]
                _put(product, grad_weights, point)
                point += W
        for h in range(H):
            total, row = column_total[h], grad_features[n, h, w]
            for c in range(C):
                _put(total[c], row, c)
