"""Array operations: a reference that defines each, a CPU path and Triton kernels.

The torch parts are loaded when first asked for, so that a deployed runtime, which has no torch,
can import :mod:`bevstack.kernels.grid` and the numba modules.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from .grid import BEVGrid

if TYPE_CHECKING:
    from .bev_pool import BEVPoolPlan, bev_pool, plan_bev_pool
    from .box_iou import box_giou, box_giou_bev, box_iou, box_iou_bev, intersection_area_bev
    from .neighbors import NeighborTable, neighbors
    from .nms import circle_nms, nms
    from .points_in_boxes import count_points_in_boxes, points_in_boxes
    from .sparse_conv import sparse_conv
    from .voxelize import Voxels, pillar_max, scatter_to_bev, voxelize

_HOME = {
    "BEVPoolPlan": "bev_pool",
    "bev_pool": "bev_pool",
    "plan_bev_pool": "bev_pool",
    "box_giou": "box_iou",
    "box_giou_bev": "box_iou",
    "box_iou": "box_iou",
    "box_iou_bev": "box_iou",
    "intersection_area_bev": "box_iou",
    "NeighborTable": "neighbors",
    "neighbors": "neighbors",
    "circle_nms": "nms",
    "nms": "nms",
    "count_points_in_boxes": "points_in_boxes",
    "points_in_boxes": "points_in_boxes",
    "sparse_conv": "sparse_conv",
    "Voxels": "voxelize",
    "pillar_max": "voxelize",
    "scatter_to_bev": "voxelize",
    "voxelize": "voxelize",
}

__all__ = [
    "BEVGrid",
    "BEVPoolPlan",
    "NeighborTable",
    "Voxels",
    "bev_pool",
    "box_giou",
    "box_giou_bev",
    "box_iou",
    "box_iou_bev",
    "circle_nms",
    "count_points_in_boxes",
    "intersection_area_bev",
    "neighbors",
    "nms",
    "pillar_max",
    "plan_bev_pool",
    "points_in_boxes",
    "scatter_to_bev",
    "sparse_conv",
    "voxelize",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


class _Package(ModuleType):
    """Python binds a submodule's name on its package; `bev_pool` here shall stay the function."""

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, ModuleType) and _HOME.get(name) == name:
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
