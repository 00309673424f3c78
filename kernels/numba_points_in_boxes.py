"""Which box holds a point, on the CPU, on numpy arrays, without torch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .numba_boxes import prepare, row
from .threads import compiled_in_order, in_parallel

Array = NDArray


def points_in_boxes(points: Array, boxes: Array, num_threads: int | None = None) -> Array:
    """The first box that holds each point, its surface included.

    Args:
        points: (P, 3 or more) x, y, z first.
        boxes: (M, 7) x, y, z of the middle, length, width, height, yaw.
        num_threads: threads to use, by default all cores of this process.

    Returns:
        (P,) int64, -1 for a point in no box.
    """
    found = np.empty(len(points), np.int64)
    args = _xyz(points), prepare(boxes), found
    in_parallel(lambda a, b: _find(*args, a, b), len(points), num_threads, smallest=1024)
    return found


def count_points_in_boxes(points: Array, boxes: Array, num_threads: int | None = None) -> Array:
    """How many of the points each box holds: (M,) int64; see :func:`points_in_boxes`."""
    count = np.empty(len(boxes), np.int64)
    args = _xyz(points), prepare(boxes), count
    in_parallel(lambda a, b: _count(*args, a, b), len(boxes), num_threads)
    return count


def _xyz(points: Array) -> Array:
    return np.ascontiguousarray(points[:, :3], np.float64)


@compiled_in_order
def _is_inside(x, y, z, box):
    x, y, z = x - box[0], y - box[1], z - box[2]
    if not (abs(x) <= box[8] and abs(y) <= box[8] and abs(z) <= box[5]):  # most; NaN as well
        return False
    along, across = x * box[6] + y * box[7], y * box[6] - x * box[7]
    return abs(along) <= box[3] and abs(across) <= box[4]


@compiled_in_order
def _find(points, boxes, found, low, high):
    for p in range(low, high):
        found[p] = -1
        for m in range(len(boxes)):
            if _is_inside(points[p, 0], points[p, 1], points[p, 2], row(boxes, m)):
                found[p] = m
                break


@compiled_in_order
def _count(points, boxes, count, low, high):
    for m in range(low, high):
        box, inside = row(boxes, m), 0
        for p in range(len(points)):
            if _is_inside(points[p, 0], points[p, 1], points[p, 2], box):
                inside += 1
        count[m] = inside
