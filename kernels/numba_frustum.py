"""What a camera's calibration decides, on numpy arrays, without torch.

Where the points of a frustum fall on the BEV grid, and which depth LiDAR saw in which pixel. Both
round to cells and pixels, so that training on a CPU and a deployed runtime share these loops: two
ways of summing three products in float32 put one point in a hundred thousand elsewhere.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .grid import BEVGrid
from .inverse import inverse_affine
from .threads import compiled_in_order, in_parallel

Array = NDArray
AHEAD = 1e-2  # metres; what is nearer to the camera, or behind it, is not seen


class FrustumShape(NamedTuple):
    """The points of a frustum: D bins of depth, one of each per pixel."""

    first_depth: float  # of bin 0's near end, metres along the optical axis
    depth_step: float
    num_bins: int
    depth_in_bin: float  # which depth stands for a bin, 0 its near end, 1 its far end
    height_range: tuple[float, float]  # of z that is pooled, metres in the BEV frame
    truncate_cells: bool  # cells by truncation towards zero, as published models did


def frustum_cells(
    bev_from_image: Array,
    image_sample: Array,
    size: tuple[int, int],
    frustum: FrustumShape,
    grid: BEVGrid,
    num_threads: int | None = None,
) -> Array:
    """Where every depth bin of every pixel falls.

    Args:
        bev_from_image: (N, 4, 4) takes (u * d, v * d, d, 1) to the BEV frame, where pixel (row i,
            column j) has its centre at u = j, v = i.
        image_sample: (N,) int64 which sample an image belongs to.
        size: H, W of the feature map.
        frustum: which points there are.
        grid: the grid that is pooled into.
        num_threads: threads to use, by default all cores of this process.

    Returns:
        (N, D, H, W) int64: sample * cells + flat cell, -1 off the grid or outside the heights.
    """
    step = np.arange(frustum.num_bins, dtype=np.float32) + np.float32(frustum.depth_in_bin)
    depths = np.float32(frustum.first_depth) + step * np.float32(frustum.depth_step)
    bounds = np.array(
        [*grid.x_range, *grid.y_range, grid.cell_size, *frustum.height_range], np.float32
    )
    cell = np.empty((len(bev_from_image), frustum.num_bins, *size), np.int64)
    matrices = np.ascontiguousarray(bev_from_image, np.float32)
    shape, truncate = np.array(grid.shape, np.int64), frustum.truncate_cells
    args = matrices, depths, bounds, shape, truncate, np.ascontiguousarray(image_sample), cell
    in_parallel(lambda a, b: _frustum_cells(*args, a, b), len(cell) * frustum.num_bins, num_threads)
    return cell


@compiled_in_order
def _frustum_cells(matrices, depths, bounds, shape, truncate, image_sample, cell, low, high):
    _, D, H, W = cell.shape
    x0, x1, y0, y1, size, z0, z1 = bounds
    for nd in range(low, high):
        n, d = divmod(nd, D)
        m, depth, first = matrices[n], depths[d], image_sample[n] * shape[0] * shape[1]
        for i in range(H):
            v = np.float32(i)
            for j in range(W):
                u = np.float32(j)
                x = (m[0, 0] * u + m[0, 1] * v + m[0, 2]) * depth + m[0, 3]
                y = (m[1, 0] * u + m[1, 1] * v + m[1, 2]) * depth + m[1, 3]
                z = (m[2, 0] * u + m[2, 1] * v + m[2, 2]) * depth + m[2, 3]
                if truncate:
                    x = _truncated(x, x0, size)
                    y = _truncated(y, y0, size)
                    z = _truncated(z, z0, z1 - z0)
                inside = (x >= x0) & (x < x1) & (y >= y0) & (y < y1) & (z >= z0) & (z < z1)
                if inside:
                    # Clipped: rounding in the division may not leave the grid.
                    a = min(np.int64((x - x0) / size), shape[0] - 1)
                    b = min(np.int64((y - y0) / size), shape[1] - 1)
                    cell[n, d, i, j] = first + a * shape[1] + b
                else:
                    cell[n, d, i, j] = -1


@compiled_in_order
def _truncated(place, low, size):
    """A place less than one cell below the lower edge, moved onto it."""
    cells = (place - low) / size
    return place if cells <= -1 or cells >= 0 else low


def nearest_depth(
    points: Array,
    point_sample: Array,
    bev_from_image: Array,
    image_sample: Array,
    size: tuple[int, int],
    num_threads: int | None = None,
) -> Array:
    """Depth of the nearest LiDAR point in every pixel.

    Args:
        points: (P, 3 or more) float32 x, y, z in the BEV frame.
        point_sample: (P,) int64 which sample a point belongs to.
        bev_from_image: (N, 4, 4) as in :func:`frustum_cells`.
        image_sample: (N,) int64 which sample an image belongs to.
        size: H, W of the result.
        num_threads: threads to use, by default all cores of this process.

    Returns:
        (N, H, W) float32 metres along the optical axis; infinity where there is no point.
    """
    depth = np.full((len(bev_from_image), *size), np.inf, np.float32)
    args = points, point_sample, _image_from_bev(bev_from_image), image_sample, depth
    in_parallel(lambda a, b: _nearest(*args, a, b), len(depth), num_threads)
    return depth


def last_depth(
    points: Array,
    point_sample: Array,
    bev_from_image: Array,
    image_sample: Array,
    size: tuple[int, int],
    num_threads: int | None = None,
) -> Array:
    """Depth of the last LiDAR point, by input order, in every pixel: what MIT BEVFusion saw.

    Pixel (row i, column j) holds what falls into j <= u < j + 1, i <= v < i + 1. Arguments as in
    :func:`nearest_depth`.

    Returns:
        (N, H, W) float32 metres along the optical axis; 0 where there is no point.
    """
    depth = np.zeros((len(bev_from_image), *size), np.float32)
    args = points, point_sample, _image_from_bev(bev_from_image), image_sample, depth
    in_parallel(lambda a, b: _last(*args, a, b), len(depth), num_threads)
    return depth


def _image_from_bev(bev_from_image: Array) -> Array:
    # float64: the matrices hold both metres and 1 / focal length.
    return np.ascontiguousarray(inverse_affine(bev_from_image)[:, :3], np.float32)


@compiled_in_order
def _projected(m, points, p):
    x, y, z = points[p, 0], points[p, 1], points[p, 2]
    u = m[0, 0] * x + m[0, 1] * y + m[0, 2] * z + m[0, 3]
    v = m[1, 0] * x + m[1, 1] * y + m[1, 2] * z + m[1, 3]
    return u, v, m[2, 0] * x + m[2, 1] * y + m[2, 2] * z + m[2, 3]


@compiled_in_order
def _nearest(points, point_sample, matrices, image_sample, nearest, low, high):
    height, width = nearest.shape[1:]
    half, ahead = np.float32(0.5), np.float32(AHEAD)
    for n in range(low, high):
        for p in range(len(points)):
            if point_sample[p] != image_sample[n]:
                continue
            u, v, depth = _projected(matrices[n], points, p)
            if not depth > ahead:
                continue
            inverse = np.float32(1) / depth
            # Compared as floats: no wrap-around of huge values.
            column, row = np.floor(u * inverse + half), np.floor(v * inverse + half)
            if 0 <= column < width and 0 <= row < height:
                i, j = np.int64(row), np.int64(column)
                nearest[n, i, j] = min(nearest[n, i, j], depth)


@compiled_in_order
def _last(points, point_sample, matrices, image_sample, last, low, high):
    height, width = last.shape[1:]
    least, most = np.float32(1e-5), np.float32(1e5)
    for n in range(low, high):
        for p in range(len(points)):
            if point_sample[p] != image_sample[n]:
                continue
            u, v, depth = _projected(matrices[n], points, p)
            if not depth > 0:
                continue
            distance = min(max(depth, least), most)
            u, v = u / distance, v / distance
            if 0 <= u < width and 0 <= v < height:
                last[n, np.int64(v), np.int64(u)] = distance
