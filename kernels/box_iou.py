"""Overlap of upright boxes: intersection over union on the ground (BEV) and in space, and GIoU.

    IoU = shared / union;  GIoU = IoU - (hull - union) / hull  (Rezatofighi et al., CVPR 2019)

The hull is the convex hull of both ground rectangles, in space times the height from the lower
floor to the higher roof. How rectangles are clipped is told in ``numba_boxes.py`` (CPU);
``triton_boxes.py`` holds the GPU kernel, except for the hull, which is plain PyTorch there.

Boxes are rows x, y, z of the middle, length, width, height, yaw from +x towards +y, as the fields
of ``Boxes3D`` side by side. A negative size counts as zero. Where union or hull is zero, or a box
is not finite, the overlap is 0. No gradient is promised, and none is given.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .overlap import Overlap

# --- Definition -----------------------------------------------------------------------------------


def box_overlap_reference(
    boxes: Tensor, others: Tensor, overlap: Overlap, aligned: bool = False
) -> Tensor:
    """The definition: plain PyTorch, any device, float32 or float64."""
    first, second = columns(boxes), columns(others)
    if not aligned:
        first = [column.unsqueeze(1) for column in first]
    return _measure(first, second, overlap, _intersection(first, second))


def columns(boxes: Tensor) -> list[Tensor]:
    """x, y, z, half sizes, cosine, sine and radius of the ground rectangle, each (M,).

    NaN for a box that is not finite.
    """
    boxes = boxes.detach()
    boxes = boxes if boxes.dtype == torch.float64 else boxes.float()
    # No number compares with NaN: such a box is near nothing.
    boxes = boxes.where(boxes.isfinite().all(1, keepdim=True), torch.nan)
    half, yaw = boxes[:, 3:6].clamp(min=0) / 2, boxes[:, 6]
    radius = torch.hypot(half[:, 0], half[:, 1])
    return [*boxes[:, :3].unbind(1), *half.unbind(1), yaw.cos(), yaw.sin(), radius]


def _intersection(first: list[Tensor], second: list[Tensor]) -> Tensor:
    """Area that ground rectangles share."""
    length, width = first[3], first[4]
    a, b = second[3], second[4]
    x, y = first[0] - second[0], first[1] - second[1]
    # The first box in the axes of the second: middle, half length and half width as vectors.
    dx, dy = x * second[6] + y * second[7], y * second[6] - x * second[7]
    cos = first[6] * second[6] + first[7] * second[7]
    sin = first[7] * second[6] - first[6] * second[7]
    corners = []
    for along, across in ((1, 1), (-1, 1), (-1, -1), (1, -1)):
        u, v = along * length, across * width
        corners.append((dx + u * cos - v * sin, dy + u * sin + v * cos))
    area = torch.zeros_like(dx)
    for k in range(4):
        area = area + _below_edge(corners[k], corners[(k + 1) % 4], a, b)
    most = torch.minimum(4 * length * width, 4 * a * b)
    near = x * x + y * y <= (first[8] + second[8]) ** 2
    return torch.where(near, torch.minimum(area.clamp(min=0), most), 0)


def _below_edge(start: tuple, end: tuple, a: Tensor, b: Tensor) -> Tensor:
    """Minus the integral of y, clipped to +-b, along an edge clipped to |x| <= a."""
    (x0, y0), (x1, y1) = start, end

    def clip(value: Tensor, limit: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(value, -limit), limit)

    left, right = clip(x0, a), clip(x1, a)
    crosses = (right - left).abs() > 1e-30
    run = torch.where(crosses, x1 - x0, 1)
    y_left, y_right = (y0 + (x - x0) / run * (y1 - y0) for x in (left, right))
    low, high = torch.minimum(y_left, y_right), torch.maximum(y_left, y_right)
    above = torch.maximum(high, b) - torch.maximum(low, b)
    below = torch.minimum(high, -b) - torch.minimum(low, -b)
    middle = (clip(high, b) - clip(low, b)) * (clip(high, b) + clip(low, b)) / 2
    tilted = high - low > 1e-30
    rise = torch.where(tilted, high - low, 1)
    mean = torch.where(tilted, (middle + b * (above - below)) / rise, clip(low, b))
    return torch.where(crosses, (left - right) * mean, 0)


def _measure(first: list[Tensor], second: list[Tensor], overlap: Overlap, shared: Tensor) -> Tensor:
    if overlap == Overlap.BEV_AREA:
        return shared
    volume, other_volume = 4 * first[3] * first[4], 4 * second[3] * second[4]
    extent = torch.ones_like(shared)
    if overlap in (Overlap.IOU, Overlap.GIOU):
        z, top, other_top = first[2] - second[2], first[5], second[5]
        high, low = torch.minimum(z + top, other_top), torch.maximum(z - top, -other_top)
        shared = shared * (high - low).clamp(min=0)
        volume, other_volume = volume * 2 * top, other_volume * 2 * other_top
        extent = torch.maximum(z + top, other_top) - torch.minimum(z - top, -other_top)
    union = volume + other_volume - shared
    iou = torch.where(union > 0, shared / union, 0)
    if overlap in (Overlap.BEV_IOU, Overlap.IOU):
        return iou
    hull = extent * _hull_area(first, second)
    return torch.where(hull > 0, iou - (hull - union).clamp(min=0) / hull, iou)


def _hull_area(first: list[Tensor], second: list[Tensor]) -> Tensor:
    """Area of the convex hull of two ground rectangles.

    Over every corner's x, the hull reaches as far as the longest reaching line between a corner
    on its left and one on its right; in between it is straight. No corner has to be told inside or
    outside, so that equal corners and corners in line need no care.
    """
    corner_x, corner_y = [], []
    for box in (first, second):
        for along, across in ((1, 1), (-1, 1), (-1, -1), (1, -1)):
            u, v = along * box[3], across * box[4]
            corner_x.append(box[0] - second[0] + u * box[6] - v * box[7])
            corner_y.append(box[1] - second[1] + u * box[7] + v * box[6])
    x, order = torch.stack(torch.broadcast_tensors(*corner_x), -1).sort(dim=-1)
    y = torch.stack(torch.broadcast_tensors(*corner_y), -1).gather(-1, order)
    extent = []
    for k in range(8):
        # All lines from a corner not right of this one to a corner not left of it.
        (x0, x1), (y0, y1) = ((part[..., : k + 1, None], part[..., None, k:]) for part in (x, y))
        share = (x[..., k, None, None] - x0) / torch.where(x1 > x0, x1 - x0, 1)
        line = y0 + share * (y1 - y0)
        high = torch.where(x1 > x0, line, torch.maximum(y0, y1))
        low = torch.where(x1 > x0, line, torch.minimum(y0, y1))
        extent.append(high.amax((-2, -1)) - low.amin((-2, -1)))
    return torch.trapezoid(torch.stack(extent, -1), x, dim=-1)


# --- CPU and GPU paths, torch.library -------------------------------------------------------------


def box_overlap_cpu(boxes: Tensor, others: Tensor, overlap: Overlap, aligned: bool) -> Tensor:
    """The overlap, made by numba in float64."""
    from .numba_boxes import box_overlap  # here: numba takes a second to import, a GPU needs none

    pair = boxes.double().numpy(), others.double().numpy()
    result = box_overlap(*pair, overlap, aligned, num_threads=torch.get_num_threads())
    return torch.from_numpy(result).to(_result_type(boxes, others))


def box_overlap_triton(boxes: Tensor, others: Tensor, overlap: Overlap, aligned: bool) -> Tensor:
    """The overlap, made by Triton in float32 (float64 for float64)."""
    from .triton_boxes import box_overlap

    dtype = _result_type(boxes, others)
    first, second = columns(boxes.to(dtype)), columns(others.to(dtype))
    if overlap not in (Overlap.BEV_GIOU, Overlap.GIOU):
        return box_overlap(first, second, overlap, aligned)
    area = box_overlap(first, second, Overlap.BEV_AREA, aligned)
    if not aligned:
        first = [column.unsqueeze(1) for column in first]
    return _measure(first, second, overlap, area)


def _result_type(boxes: Tensor, others: Tensor) -> torch.dtype:
    return torch.promote_types(torch.promote_types(boxes.dtype, others.dtype), torch.float32)


@torch.library.custom_op("bevstack::box_overlap", mutates_args=(), device_types="cpu")
def _box_overlap(boxes: Tensor, others: Tensor, overlap: int, aligned: bool) -> Tensor:
    return box_overlap_cpu(boxes, others, Overlap(overlap), aligned)


@_box_overlap.register_kernel("cuda")
def _(boxes: Tensor, others: Tensor, overlap: int, aligned: bool) -> Tensor:
    return box_overlap_triton(boxes, others, Overlap(overlap), aligned)


@_box_overlap.register_fake
def _(boxes, others, overlap, aligned):
    shape = boxes.shape[:1] if aligned else (boxes.shape[0], others.shape[0])
    return boxes.new_empty(shape, dtype=_result_type(boxes, others))


# --- Public ---------------------------------------------------------------------------------------


def box_iou(boxes: Tensor, others: Tensor, aligned: bool = False) -> Tensor:
    """Intersection over union of volumes.

    Args:
        boxes: (M, 7) float: x, y, z of the middle, length, width, height in metres, yaw.
        others: (L, 7); (M, 7) if aligned.
        aligned: compare row by row, not all pairs.

    Returns:
        (M, L), or (M,) if aligned; float64 if an input is, float32 otherwise. No gradient.

    Raises:
        ValueError: if the shapes do not fit.
    """
    return _overlap(boxes, others, Overlap.IOU, aligned)


def box_iou_bev(boxes: Tensor, others: Tensor, aligned: bool = False) -> Tensor:
    """Intersection over union of ground rectangles; see :func:`box_iou`."""
    return _overlap(boxes, others, Overlap.BEV_IOU, aligned)


def box_giou(boxes: Tensor, others: Tensor, aligned: bool = False) -> Tensor:
    """Generalized IoU of volumes, in (-1, 1]; see :func:`box_iou`."""
    return _overlap(boxes, others, Overlap.GIOU, aligned)


def box_giou_bev(boxes: Tensor, others: Tensor, aligned: bool = False) -> Tensor:
    """Generalized IoU of ground rectangles, in (-1, 1]; see :func:`box_iou`."""
    return _overlap(boxes, others, Overlap.BEV_GIOU, aligned)


def intersection_area_bev(boxes: Tensor, others: Tensor, aligned: bool = False) -> Tensor:
    """Area that ground rectangles share, square metres; see :func:`box_iou`."""
    return _overlap(boxes, others, Overlap.BEV_AREA, aligned)


def _overlap(boxes: Tensor, others: Tensor, overlap: Overlap, aligned: bool) -> Tensor:
    for name, tensor in (("boxes", boxes), ("others", others)):
        if tensor.ndim != 2 or tensor.shape[1] != 7:
            raise ValueError(
                f"{name} must be (M, 7): x, y, z, length, width, height, yaw; "
                f"not {tuple(tensor.shape)}"
            )
    if aligned and len(boxes) != len(others):
        raise ValueError(
            f"aligned boxes are compared row by row, but there are {len(boxes)} and {len(others)}"
        )
    return _box_overlap(boxes.detach(), others.detach(), int(overlap), aligned)
