"""Overlap of upright boxes on the CPU, on numpy arrays, without torch.

Boxes are rows x, y, z of the middle, length, width, height, yaw (see ``datasets/boxes.py``).

The ground rectangle of one box is taken into the axes of the other, |x| <= a and |y| <= b there.
Green's theorem for what lies inside is a sum over its four edges, counter-clockwise:

    area = - sum over edges of the integral of min(max(y, -b), b) dx over the part with |x| <= a

Every term is a continuous function of the corners, with no case to decide: boxes that share edges
or corners, and boxes that are equal, need no tolerance. Lengths are relative to one box's middle,
so that boxes far from the origin lose nothing.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .overlap import Overlap
from .threads import compiled_in_order, in_parallel

Array = NDArray

# Edges and spans shorter than this (metres) hold no area that counts; below, quotients lose digits.
SHORTEST = 1e-30


def box_overlap(
    boxes: Array, others: Array, overlap: Overlap, aligned: bool, num_threads: int | None = None
) -> Array:
    """Overlap of pairs of boxes; see ``kernels/box_iou.py`` for what is measured.

    Args:
        boxes: (M, 7) x, y, z, length, width, height, yaw.
        others: (L, 7), as many as ``boxes`` if aligned.
        overlap: what to measure.
        aligned: measure pairs of rows, not all pairs.
        num_threads: threads to use, by default all cores of this process.

    Returns:
        (M, L) float64, or (M,) if aligned.
    """
    first, second = prepare(boxes), prepare(others)
    per_row = 1 if aligned else len(second)
    result = np.empty((len(first), per_row))
    args = first, second, int(overlap), aligned, result
    smallest = max(1, 1024 // max(per_row, 1))
    in_parallel(lambda a, b: _overlaps(*args, a, b), len(first), num_threads, smallest)
    return result[:, 0] if aligned else result


def prepare(boxes: Array) -> Array:
    """(M, 9) float64: x, y, z, half sizes, cosine, sine, radius of the ground rectangle.

    NaN for a box that is not finite.
    """
    boxes = np.asarray(boxes, np.float64).reshape(-1, 7)
    # No number compares with NaN: such a box is near nothing.
    boxes = np.where(np.isfinite(boxes).all(1, keepdims=True), boxes, np.nan)
    half, yaw = np.maximum(boxes[:, 3:6], 0) / 2, boxes[:, 6]
    radius = np.hypot(half[:, 0], half[:, 1])
    columns = *boxes[:, :3].T, *half.T, np.cos(yaw), np.sin(yaw), radius
    return np.stack(columns, axis=1)


@compiled_in_order
def row(boxes, i):
    """A prepared box as a tuple: passing arrays would count references, in every pair."""
    b = boxes
    return b[i, 0], b[i, 1], b[i, 2], b[i, 3], b[i, 4], b[i, 5], b[i, 6], b[i, 7], b[i, 8]


@compiled_in_order
def _overlaps(first, second, overlap, aligned, result, low, high):
    x, y, stack = np.empty(8), np.empty(8), np.empty(8, np.int64)
    for i in range(low, high):
        box = row(first, i)
        for k in range(result.shape[1]):
            other = row(second, i if aligned else k)
            hull = 0.0
            if overlap == 2 or overlap == 4:
                hull = _hull_area(box, other, x, y, stack)
            result[i, k] = measure(box, other, overlap, intersection(box, other), hull)


@compiled_in_order
def intersection(box, other):
    """Area that the ground rectangles of two prepared boxes share."""
    x, y, reach = box[0] - other[0], box[1] - other[1], box[8] + other[8]
    if not x * x + y * y <= reach * reach:  # NaN as well
        return 0.0
    # The first box in the axes of the second: middle, half length and half width as vectors.
    dx, dy = x * other[6] + y * other[7], y * other[6] - x * other[7]
    cos, sin = box[6] * other[6] + box[7] * other[7], box[7] * other[6] - box[6] * other[7]
    ux, uy, vx, vy = box[3] * cos, box[3] * sin, -box[4] * sin, box[4] * cos
    a, b = other[3], other[4]
    area = _below_edge(dx + ux + vx, dy + uy + vy, dx - ux + vx, dy - uy + vy, a, b)
    area += _below_edge(dx - ux + vx, dy - uy + vy, dx - ux - vx, dy - uy - vy, a, b)
    area += _below_edge(dx - ux - vx, dy - uy - vy, dx + ux - vx, dy + uy - vy, a, b)
    area += _below_edge(dx + ux - vx, dy + uy - vy, dx + ux + vx, dy + uy + vy, a, b)
    return min(max(area, 0.0), min(4 * box[3] * box[4], 4 * a * b))


@compiled_in_order
def _below_edge(x0, y0, x1, y1, a, b):
    """Minus the integral of y, clipped to +-b, along an edge clipped to |x| <= a."""
    left, right = min(max(x0, -a), a), min(max(x1, -a), a)
    width = right - left
    if abs(width) <= SHORTEST:
        return 0.0
    y_left = y0 + (left - x0) / (x1 - x0) * (y1 - y0)
    y_right = y0 + (right - x0) / (x1 - x0) * (y1 - y0)
    low, high = min(y_left, y_right), max(y_left, y_right)
    clipped_low, clipped_high = min(max(low, -b), b), min(max(high, -b), b)
    if high - low <= SHORTEST:
        return -width * clipped_low
    above = max(high, b) - max(low, b)
    below = min(high, -b) - min(low, -b)
    middle = (clipped_high - clipped_low) * (clipped_high + clipped_low) / 2
    return -width * (middle + b * (above - below)) / (high - low)


@compiled_in_order
def measure(box, other, overlap, area, hull):
    """A measure of ``Overlap`` from the ground area shared and that of the convex hull."""
    if overlap == 0:
        return area
    shared, volume, other_volume = area, 4 * box[3] * box[4], 4 * other[3] * other[4]
    if overlap >= 3:
        z = box[2] - other[2]
        shared *= max(min(z + box[5], other[5]) - max(z - box[5], -other[5]), 0.0)
        hull *= max(z + box[5], other[5]) - min(z - box[5], -other[5])
        volume, other_volume = volume * 2 * box[5], other_volume * 2 * other[5]
    union = volume + other_volume - shared
    iou = shared / union if union > 0 else 0.0
    return iou - max(hull - union, 0.0) / hull if hull > 0 else iou


@compiled_in_order
def _hull_area(box, other, x, y, stack):
    """Area of the convex hull of two ground rectangles (Andrew's monotone chain, 1979).

    The last three arguments are room for eight corners.
    """
    _write_corners(box, other, x, y, 0)
    _write_corners(other, other, x, y, 4)
    for k in range(1, 8):  # sort by x, then y
        px, py, at = x[k], y[k], k
        while at > 0 and (x[at - 1] > px or (x[at - 1] == px and y[at - 1] > py)):
            x[at], y[at] = x[at - 1], y[at - 1]
            at -= 1
        x[at], y[at] = px, py
    return _chain_area(x, y, stack, 1.0) + _chain_area(x, y, stack, -1.0)


@compiled_in_order
def _write_corners(box, origin, x, y, at):
    ux, uy, vx, vy = box[3] * box[6], box[3] * box[7], -box[4] * box[7], box[4] * box[6]
    for k in range(4):
        along, across = (1 - 2 * (k & 1)), (1 - (k & 2))
        x[at + k] = box[0] - origin[0] + along * ux + across * vx
        y[at + k] = box[1] - origin[1] + along * uy + across * vy


@compiled_in_order
def _chain_area(x, y, stack, side):
    """Area between the upper (side 1) or lower (-1) chain of sorted points and the x axis."""
    top = 0
    for k in range(8):
        while top > 1:
            p, q = stack[top - 2], stack[top - 1]
            turn = (x[q] - x[p]) * (y[k] - y[p]) - (y[q] - y[p]) * (x[k] - x[p])
            if side * turn < 0:
                break
            top -= 1
        stack[top] = k
        top += 1
    area = 0.0
    for k in range(1, top):
        p, q = stack[k - 1], stack[k]
        area += side * (x[q] - x[p]) * (y[p] + y[q]) / 2
    return area
