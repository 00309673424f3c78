"""Pool lifted camera features into BEV cells.

pooled[g, c] = sum of depth[p] * features[pixel(p), c] over the points p with cell[p] = g
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class BEVPoolPlan(NamedTuple):
    """Which points fall in which cell."""

    cell: Tensor


def bev_pool_reference(depth: Tensor, features: Tensor, cell: Tensor, num_cells: int) -> Tensor:
    """The definition: plain PyTorch, any device, any dtype; tests run it in float64."""
    lifted = depth.unsqueeze(-1) * features.unsqueeze(1)  # (N, D, H, W, C)
    inside = cell >= 0
    pooled = lifted.new_zeros(num_cells, features.shape[-1])
    return pooled.index_add(0, cell[inside], lifted[inside])


def plan_bev_pool(cell: Tensor, num_cells: int) -> BEVPoolPlan:
    """Group the points by cell."""
    return BEVPoolPlan(cell)


def bev_pool(
    depth: Tensor,
    features: Tensor,
    cell: Tensor,
    num_cells: int,
    plan: BEVPoolPlan | None = None,
) -> Tensor:
    """Pool lifted camera features into BEV cells; differentiable in depth and features.

    Args:
        depth: (N, D, H, W) float, weight of every depth bin of every pixel.
        features: (N, H, W, C) float.
        cell: (N, D, H, W) int64 from ``BEVGrid.flat_cell``; -1 marks a point outside the grid.
        num_cells: number of cells in the grid.
        plan: from ``plan_bev_pool(cell, num_cells)``, to be used again while ``cell`` is the same.

    Returns:
        (num_cells, C) in the dtype of ``features``; empty cells are zero.
    """
    pooled = bev_pool_reference(depth.float(), features.float(), cell, num_cells)
    return pooled.to(features.dtype)
