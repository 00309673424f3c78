"""Overlap of upright boxes, and which box holds a point, on the GPU; see ``numba_boxes.py``.

Boxes come as columns, one after another in memory: x, y, z, half length, half width, half height,
cosine and sine of yaw, radius of the ground rectangle. Block sizes are not tuned: no figure was
measured on a GPU yet.
"""

# A checker sees neither launch options nor that constants are passed as plain numbers.
# pyright: reportCallIssue=false, reportArgumentType=false, reportIndexIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .overlap import Overlap

PAIRS = {"BLOCK": 128}
POINTS = {"BLOCK": 256}
COUNTS = {"BLOCK": 1024}


@triton.jit
def _clip(value, limit):
    return tl.minimum(tl.maximum(value, -limit), limit)


@triton.jit
def _below_edge(x0, y0, x1, y1, a, b):
    """Minus the integral of y, clipped to +-b, along an edge clipped to |x| <= a."""
    left, right = _clip(x0, a), _clip(x1, a)
    crosses = tl.abs(right - left) > 1e-30
    run, rise = tl.where(crosses, x1 - x0, 1.0), y1 - y0
    y_left, y_right = y0 + (left - x0) / run * rise, y0 + (right - x0) / run * rise
    low, high = tl.minimum(y_left, y_right), tl.maximum(y_left, y_right)
    above = tl.maximum(high, b) - tl.maximum(low, b)
    below = tl.minimum(high, -b) - tl.minimum(low, -b)
    middle = (_clip(high, b) - _clip(low, b)) * (_clip(high, b) + _clip(low, b)) * 0.5
    tilted = high - low > 1e-30
    span = tl.where(tilted, high - low, 1.0)
    mean = tl.where(tilted, (middle + b * (above - below)) / span, _clip(low, b))
    return tl.where(crosses, (left - right) * mean, 0.0)


@triton.jit
def intersection(x, y, length, width, cos_i, sin_i, a, b, cos_j, sin_j, reach):
    """Area that ground rectangles share; x and y from the second's middle to the first's."""
    dx, dy = x * cos_j + y * sin_j, y * cos_j - x * sin_j
    cos, sin = cos_i * cos_j + sin_i * sin_j, sin_i * cos_j - cos_i * sin_j
    ux, uy, vx, vy = length * cos, length * sin, -width * sin, width * cos
    area = _below_edge(dx + ux + vx, dy + uy + vy, dx - ux + vx, dy - uy + vy, a, b)
    area += _below_edge(dx - ux + vx, dy - uy + vy, dx - ux - vx, dy - uy - vy, a, b)
    area += _below_edge(dx - ux - vx, dy - uy - vy, dx + ux - vx, dy + uy - vy, a, b)
    area += _below_edge(dx + ux - vx, dy + uy - vy, dx + ux + vx, dy + uy + vy, a, b)
    area = tl.minimum(tl.maximum(area, 0.0), tl.minimum(4 * length * width, 4 * a * b))
    return tl.where(x * x + y * y <= reach * reach, area, 0.0)


@triton.jit
def overlap_kernel(
    boxes_ptr,  # (9, M)
    others_ptr,  # (9, L)
    overlap_ptr,  # (M, L), or (M,) if aligned
    M,
    L,
    ALIGNED: tl.constexpr,
    IN_SPACE: tl.constexpr,
    AREA_ONLY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # Rows on the first axis of the launch, which may be longest.
    if ALIGNED:
        j = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        i = j
        place = j.to(tl.int64)
    else:
        i = tl.program_id(0) + tl.zeros((BLOCK,), tl.int32)
        j = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        place = i.to(tl.int64) * L + j
    real = j < L
    box, other = boxes_ptr + i, others_ptr + j
    x = tl.load(box, mask=real) - tl.load(other, mask=real)
    y = tl.load(box + M, mask=real) - tl.load(other + L, mask=real)
    length, a = tl.load(box + 3 * M, mask=real), tl.load(other + 3 * L, mask=real)
    width, b = tl.load(box + 4 * M, mask=real), tl.load(other + 4 * L, mask=real)
    cos_i, cos_j = tl.load(box + 6 * M, mask=real), tl.load(other + 6 * L, mask=real)
    sin_i, sin_j = tl.load(box + 7 * M, mask=real), tl.load(other + 7 * L, mask=real)
    reach = tl.load(box + 8 * M, mask=real) + tl.load(other + 8 * L, mask=real)
    result = intersection(x, y, length, width, cos_i, sin_i, a, b, cos_j, sin_j, reach)
    if not AREA_ONLY:
        volume, other_volume = 4 * length * width, 4 * a * b
        if IN_SPACE:
            z = tl.load(box + 2 * M, mask=real) - tl.load(other + 2 * L, mask=real)
            top, other_top = tl.load(box + 5 * M, mask=real), tl.load(other + 5 * L, mask=real)
            high, low = tl.minimum(z + top, other_top), tl.maximum(z - top, -other_top)
            result *= tl.maximum(high - low, 0.0)
            volume, other_volume = volume * 2 * top, other_volume * 2 * other_top
        union = volume + other_volume - result
        some = union > 0  # not where it is NaN
        result = tl.where(some, result / tl.where(some, union, 1.0), 0.0)
    tl.store(overlap_ptr + place, result, mask=real)


@triton.jit
def _is_inside(x, y, z, boxes_ptr, box, M):
    """Whether points lie in a box, the surface included."""
    dx = x - tl.load(boxes_ptr + box)
    dy = y - tl.load(boxes_ptr + M + box)
    dz = z - tl.load(boxes_ptr + 2 * M + box)
    cos, sin = tl.load(boxes_ptr + 6 * M + box), tl.load(boxes_ptr + 7 * M + box)
    inside = tl.abs(dx * cos + dy * sin) <= tl.load(boxes_ptr + 3 * M + box)
    inside &= tl.abs(dy * cos - dx * sin) <= tl.load(boxes_ptr + 4 * M + box)
    return inside & (tl.abs(dz) <= tl.load(boxes_ptr + 5 * M + box))


@triton.jit
def find_box_kernel(
    points_ptr,  # (3, P)
    boxes_ptr,  # (9, M)
    found_ptr,  # (P,) int64
    P,
    M,
    BLOCK: tl.constexpr,
):
    point = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    real = point < P
    x = tl.load(points_ptr + point, mask=real)
    y = tl.load(points_ptr + P + point, mask=real)
    z = tl.load(points_ptr + 2 * P + point, mask=real)
    found = tl.full((BLOCK,), -1, tl.int64)
    for box in range(M):
        inside = _is_inside(x, y, z, boxes_ptr, box, M)
        found = tl.where(inside & (found < 0), box, found)
    tl.store(found_ptr + point, found, mask=real)


@triton.jit
def count_points_kernel(
    points_ptr,  # (3, P)
    boxes_ptr,  # (9, M)
    count_ptr,  # (M,) int64
    P,
    M,
    BLOCK: tl.constexpr,
):
    box = tl.program_id(0)
    count = tl.zeros((BLOCK,), tl.int64)
    for low in range(0, P, BLOCK):
        point = low + tl.arange(0, BLOCK)
        real = point < P
        x = tl.load(points_ptr + point, mask=real)
        y = tl.load(points_ptr + P + point, mask=real)
        z = tl.load(points_ptr + 2 * P + point, mask=real)
        inside = _is_inside(x, y, z, boxes_ptr, box, M) & real
        count += inside.to(tl.int64)
    tl.store(count_ptr + box, tl.sum(count))


def box_overlap(
    first: list[Tensor], second: list[Tensor], overlap: Overlap, aligned: bool
) -> Tensor:
    """Overlap of pairs of boxes given as columns: (M, L), or (M,) if aligned; no GIoU."""
    boxes, others = torch.stack(first), torch.stack(second)
    M, L = boxes.shape[1], others.shape[1]
    result = boxes.new_empty(M) if aligned else boxes.new_empty(M, L)
    if result.numel():
        blocks = triton.cdiv(L, PAIRS["BLOCK"])
        grid = (blocks,) if aligned else (M, blocks)
        constants = {
            "ALIGNED": aligned,
            "IN_SPACE": overlap == Overlap.IOU,
            "AREA_ONLY": overlap == Overlap.BEV_AREA,
        }
        with torch.cuda.device_of(boxes):  # Triton launches on the current device
            overlap_kernel[grid](boxes, others, result, M, L, **constants, **PAIRS)
    return result


def find_box(points: Tensor, boxes: list[Tensor]) -> Tensor:
    """The first box that holds each point of (3, P): (P,) int64, -1 for none."""
    columns, P = torch.stack(boxes), points.shape[1]
    found = torch.empty(P, dtype=torch.int64, device=points.device)
    if P:
        grid = (triton.cdiv(P, POINTS["BLOCK"]),)
        with torch.cuda.device_of(points):
            find_box_kernel[grid](points, columns, found, P, columns.shape[1], **POINTS)
    return found


def count_points(points: Tensor, boxes: list[Tensor]) -> Tensor:
    """How many of the points (3, P) each box holds: (M,) int64."""
    columns = torch.stack(boxes)
    P, M = points.shape[1], columns.shape[1]
    count = torch.empty(M, dtype=torch.int64, device=points.device)
    if M:
        with torch.cuda.device_of(points):
            count_points_kernel[(M,)](points, columns, count, P, M, **COUNTS)
    return count
