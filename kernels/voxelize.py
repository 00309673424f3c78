"""Group points into voxels, and put what was computed per voxel back on a dense map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .grid import _num_cells


@dataclass(frozen=True)
class Voxels:
    """V voxels that hold at least one of P points.

    Pillars are voxels of a grid with one cell along z.
    """

    features: Tensor  # (V, C) mean of the point features, differentiable
    coordinates: Tensor  # (V, 4) int64: batch, x, y, z cell
    num_points: Tensor  # (V,) int64 points in each voxel
    point_voxel: Tensor  # (P,) int64 the voxel of each point, -1 for a point in none
    batch_size: int
    shape: tuple[int, int, int]  # cells of the grid along x, y, z


def voxelize(
    points: Tensor,
    batch_index: Tensor,
    batch_size: int,
    point_range: Sequence[float],
    voxel_size: Sequence[float],
    max_points: int | None = None,
    max_voxels: int | None = None,
) -> Voxels:
    """Group points into the voxels of a regular grid; deterministic, nothing dropped unless asked.

    Args:
        points: (P, C) float, x, y, z first.
        batch_index: (P,) int64, the sample of each point.
        batch_size: number of samples; the last ones may hold no point.
        point_range: lower x, y, z and upper x, y, z, metres; the upper edge is outside.
        voxel_size: edges of a voxel along x, y, z, metres.
        max_points: keep at most this many points per voxel, the first by input order.
        max_voxels: keep at most this many voxels per sample, the first by input order.

    Returns:
        Voxels, by batch, x, y, z; with a cap, by batch and first point, as published models do.
    """
    shape = tuple(
        _num_cells(f"point_range along {axis}", point_range[i + 3] - point_range[i], voxel_size[i])
        for i, axis in enumerate("xyz")
    )
    xyz = points.detach()[:, :3].float()
    low, high = xyz.new_tensor(point_range[:3]), xyz.new_tensor(point_range[3:])
    inside = ((xyz >= low) & (xyz < high)).all(1)
    cells = ((xyz[inside] - low) / xyz.new_tensor(voxel_size)).floor().long()
    cells = cells.clamp(min=0).minimum(torch.tensor(shape, device=cells.device) - 1)
    nx, ny, nz = shape
    flat = ((batch_index[inside] * nx + cells[:, 0]) * ny + cells[:, 1]) * nz + cells[:, 2]
    voxel_flat, inverse = flat.unique(return_inverse=True)
    if max_points is not None or max_voxels is not None:
        raise NotImplementedError("caps follow")
    point_voxel = torch.full_like(batch_index, -1)
    point_voxel[inside] = inverse
    num_points = inverse.bincount(minlength=len(voxel_flat))
    sums = points.new_zeros(len(voxel_flat), points.shape[1])
    sums = sums.index_add(0, inverse, points[inside])
    coordinates = torch.stack(
        [
            voxel_flat // (nx * ny * nz),
            voxel_flat // (ny * nz) % nx,
            voxel_flat // nz % ny,
            voxel_flat % nz,
        ],
        dim=1,
    )
    features = sums / num_points.unsqueeze(1)
    return Voxels(features, coordinates, num_points, point_voxel, batch_size, shape)


def scatter_to_bev(
    features: Tensor, coordinates: Tensor, batch_size: int, shape: tuple[int, int]
) -> Tensor:
    """Put pillar features on a dense BEV map; differentiable.

    Args:
        features: (V, C).
        coordinates: (V, 4) int64 batch, x, y, z, no (batch, x, y) twice.
        batch_size: number of samples B.
        shape: cells along x and y.

    Returns:
        (B, C, X, Y), zero where there is no pillar, channels last in memory.
    """
    nx, ny = shape
    flat = (coordinates[:, 0] * nx + coordinates[:, 1]) * ny + coordinates[:, 2]
    canvas = features.new_zeros(batch_size * nx * ny, features.shape[1])
    canvas = canvas.index_copy(0, flat, features)
    return canvas.view(batch_size, nx, ny, -1).movedim(-1, 1)


def pillar_max(point_features: Tensor, point_voxel: Tensor, num_voxels: int) -> Tensor:
    """Maximum over the points of every voxel; differentiable.

    Args:
        point_features: (P, C).
        point_voxel: (P,) int64 from ``voxelize``; points with -1 are left out.
        num_voxels: number of voxels V.

    Returns:
        (V, C); a voxel without points is zero.
    """
    inside = point_voxel >= 0
    out = point_features.new_zeros(num_voxels, point_features.shape[1])
    index = point_voxel[inside].unsqueeze(1).expand(-1, point_features.shape[1])
    return out.scatter_reduce(0, index, point_features[inside], "amax", include_self=False)
