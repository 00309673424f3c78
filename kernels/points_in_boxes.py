"""Which box holds a point, and how many points a box holds.

A point is in a box if, in the box's axes, |x| <= length / 2, |y| <= width / 2, |z| <= height / 2:
the surface counts, as in the nuScenes devkit's ``points_in_box``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .box_iou import columns

# --- Definition -----------------------------------------------------------------------------------


def inside_reference(points: Tensor, boxes: Tensor) -> Tensor:
    """The definition: (P, M) bool in plain PyTorch, whether a point is in a box."""
    x, y, z, length, width, height, cos, sin, _ = columns(boxes)
    dx, dy, dz = (points[:, k, None] - middle for k, middle in enumerate((x, y, z)))
    inside = ((dx * cos + dy * sin).abs() <= length) & ((dy * cos - dx * sin).abs() <= width)
    return inside & (dz.abs() <= height)


# --- CPU and GPU paths, torch.library -------------------------------------------------------------


@torch.library.custom_op("bevstack::points_in_boxes", mutates_args=(), device_types="cpu")
def _points_in_boxes(points: Tensor, boxes: Tensor) -> Tensor:
    from .numba_points_in_boxes import points_in_boxes  # here: numba takes a second to import

    found = points_in_boxes(*_arrays(points, boxes), num_threads=torch.get_num_threads())
    return torch.from_numpy(found)


@_points_in_boxes.register_kernel("cuda")
def _(points: Tensor, boxes: Tensor) -> Tensor:
    from .triton_boxes import find_box

    return find_box(*_columns(points, boxes))


@_points_in_boxes.register_fake
def _(points, boxes):
    return points.new_empty(points.shape[0], dtype=torch.int64)


@torch.library.custom_op("bevstack::count_points_in_boxes", mutates_args=(), device_types="cpu")
def _count_points_in_boxes(points: Tensor, boxes: Tensor) -> Tensor:
    from .numba_points_in_boxes import count_points_in_boxes

    count = count_points_in_boxes(*_arrays(points, boxes), num_threads=torch.get_num_threads())
    return torch.from_numpy(count)


@_count_points_in_boxes.register_kernel("cuda")
def _(points: Tensor, boxes: Tensor) -> Tensor:
    from .triton_boxes import count_points

    return count_points(*_columns(points, boxes))


@_count_points_in_boxes.register_fake
def _(points, boxes):
    return boxes.new_empty(boxes.shape[0], dtype=torch.int64)


def _arrays(points: Tensor, boxes: Tensor) -> tuple:
    return points[:, :3].double().numpy(), boxes.double().numpy()


def _columns(points: Tensor, boxes: Tensor) -> tuple[Tensor, list[Tensor]]:
    dtype = torch.promote_types(torch.promote_types(points.dtype, boxes.dtype), torch.float32)
    return points[:, :3].to(dtype).T.contiguous(), columns(boxes.to(dtype))


# --- Public ---------------------------------------------------------------------------------------


def points_in_boxes(points: Tensor, boxes: Tensor) -> Tensor:
    """The first box, by order, that holds each point.

    Computed in float64 on the CPU; on a GPU in float32 unless an input is float64, so that a point
    within rounding of a surface may be told otherwise.

    Args:
        points: (P, 3 or more) float, x, y, z first, in the frame of the boxes.
        boxes: (M, 7) float: x, y, z of the middle, length, width, height in metres, yaw. A box
            that is not finite holds nothing.

    Returns:
        (P,) int64 row of ``boxes``; -1 for a point in none.

    Raises:
        ValueError: if the shapes do not fit.
    """
    _check(points, boxes)
    return _points_in_boxes(points.detach(), boxes.detach())


def count_points_in_boxes(points: Tensor, boxes: Tensor) -> Tensor:
    """How many points each box holds: (M,) int64; see :func:`points_in_boxes`.

    A point in several boxes counts in each.
    """
    _check(points, boxes)
    return _count_points_in_boxes(points.detach(), boxes.detach())


def _check(points: Tensor, boxes: Tensor) -> None:
    if points.ndim != 2 or points.shape[1] < 3 or boxes.ndim != 2 or boxes.shape[1] != 7:
        raise ValueError(
            "expected points (P, 3 or more) and boxes (M, 7: x, y, z, length, width, height, "
            f"yaw), not {tuple(points.shape)} and {tuple(boxes.shape)}"
        )
