"""Bring a BEV map into another BEV frame."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ...kernels.grid import BEVGrid


def relative_transform(from_frame: Tensor, to_frame: Tensor) -> Tensor:
    """(..., 4, 4) float32 transform to a frame from another, of their global_from_bev in float64.

    In float64 up to here: global coordinates are kilometres, and cells are decimetres.
    """
    return (torch.linalg.inv(to_frame) @ from_frame).float()


def warp(bev: Tensor, source_from_target: Tensor, grid: BEVGrid) -> tuple[Tensor, Tensor]:
    """A map as it lies on the grid of another frame, sampled bilinearly on the ground plane.

    The two frames may differ by motion, turn, scale and mirroring alike.

    Args:
        bev: (B, C, X, Y) map on ``grid`` in the source frame.
        source_from_target: (B, 4, 4) float32.
        grid: of both maps.

    Returns:
        The map (B, C, X, Y) in the target frame, zero where the source did not look, and how much
        of each cell it saw: (B, 1, X, Y), 0 to 1.
    """
    (nx, ny), at = grid.shape, source_from_target
    i, j = torch.arange(nx, device=bev.device) + 0.5, torch.arange(ny, device=bev.device) + 0.5
    x, y = grid.to_metres(i.view(1, -1, 1).float(), j.view(1, 1, -1).float())
    row = [at[:, r, :, None, None] for r in range(2)]
    x_source, y_source = (r[:, 0] * x + r[:, 1] * y + r[:, 3] for r in row)
    i, j = grid.to_cells(x_source, y_source)
    # grid_sample wants the last axis of the map first, and edges at -1 and 1.
    places = torch.stack([2 * j / ny - 1, 2 * i / nx - 1], dim=-1).to(bev.dtype)
    sampled = torch.cat([bev, torch.ones_like(bev[:, :1])], 1)
    sampled = F.grid_sample(sampled, places, padding_mode="zeros", align_corners=False)
    return sampled[:, :-1], sampled[:, -1:]
