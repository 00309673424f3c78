"""Group points into voxels, and put what was computed per voxel back on a dense map.

    voxel(p) = floor((xyz(p) - low) / size);  features[v, c] = mean of points[p, c] over p in v

Pillars are voxels of a grid with one cell along z.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .grid import num_cells


@dataclass(frozen=True)
class Voxels:
    """V voxels that hold at least one of P points."""

    features: Tensor  # (V, C) mean of the point features, differentiable
    coordinates: Tensor  # (V, 4) int64: batch, x, y, z cell
    num_points: Tensor  # (V,) int64 points in each voxel, those dropped by a cap not counted
    point_voxel: Tensor  # (P,) int64 the voxel of each point, -1 for a point in none
    batch_size: int
    shape: tuple[int, int, int]  # cells of the grid along x, y, z


# --- Definitions ----------------------------------------------------------------------------------


def group_points_reference(
    points: Tensor,
    batch_index: Tensor,
    batch_size: int,
    point_range: Sequence[float],
    voxel_size: Sequence[float],
    shape: Sequence[int],
    max_points: int | None = None,
    max_voxels: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Coordinates, counts and the voxel of each point, in plain PyTorch (see :class:`Voxels`)."""
    xyz = _at_least_float32(points)[:, :3]
    low, high = xyz.new_tensor(point_range[:3]), xyz.new_tensor(point_range[3:])
    inside = ((xyz >= low) & (xyz < high)).all(1) & (batch_index >= 0) & (batch_index < batch_size)
    place = inside.nonzero().squeeze(1)
    cells = ((xyz[place] - low) / xyz.new_tensor(voxel_size)).floor().long()
    # Clipped: rounding in the division may not leave the grid.
    cells = cells.minimum(torch.tensor(shape, device=cells.device) - 1)
    nx, ny, nz = shape
    flat = ((batch_index[place] * nx + cells[:, 0]) * ny + cells[:, 1]) * nz + cells[:, 2]
    flat, order = flat.sort(stable=True)  # stable: points of a voxel stay in input order
    voxel_flat, inverse, counts = flat.unique_consecutive(return_inverse=True, return_counts=True)
    place = place[order]
    if max_points is not None:
        rank = torch.arange(len(place), device=place.device) - (counts.cumsum(0) - counts)[inverse]
        inverse = inverse.where(rank < max_points, -1)
    if max_voxels is not None:
        first_point = place[counts.cumsum(0) - counts]
        kept = _first_voxels(first_point, voxel_flat // (nx * ny * nz), max_voxels)
        # One entry more, for the points that are in no voxel: -1 is the last row.
        number = torch.nn.functional.pad(
            torch.where(kept, kept.cumsum(0) - 1, -1), (0, 1), value=-1
        )
        inverse, counts, voxel_flat = number[inverse], counts[kept], voxel_flat[kept]
    if max_points is not None:
        counts = counts.clamp(max=max_points)
    point_voxel = torch.full_like(batch_index, -1).index_copy(0, place, inverse)
    parts = voxel_flat // (nx * ny * nz), voxel_flat // (ny * nz) % nx, voxel_flat // nz % ny
    return torch.stack([*parts, voxel_flat % nz], dim=1), counts, point_voxel


def _first_voxels(first_point: Tensor, batch: Tensor, max_voxels: int) -> Tensor:
    """Which voxels are among the first ``max_voxels`` of their sample by first point: (V,) bool.

    Args:
        first_point: (V,) int64.
        batch: (V,) int64, not falling.
        max_voxels: the cap.
    """
    position = torch.arange(len(batch), device=batch.device)
    order = first_point.argsort()
    order = order[batch[order].argsort(stable=True)]
    rank = position - torch.searchsorted(batch, batch)  # batch is the same in this order
    return torch.empty_like(batch, dtype=torch.bool).scatter(0, order, rank < max_voxels)


def voxel_mean_reference(features: Tensor, point_voxel: Tensor, counts: Tensor) -> Tensor:
    """Mean over the points of every voxel: (P, C) to (V, C)."""
    inside = point_voxel >= 0
    total = features.new_zeros(counts.shape[0], features.shape[1])
    total = total.index_add(0, point_voxel[inside], features[inside])
    return total / counts.clamp(min=1).unsqueeze(1)


def voxel_max_reference(features: Tensor, point_voxel: Tensor, num_voxels: int) -> Tensor:
    """Maximum over the points of every voxel: (P, C) to (V, C); zero without points."""
    inside = point_voxel >= 0
    index = point_voxel[inside]
    # From -inf, not include_self=False: that loses gradient where a maximum is zero.
    greatest = features.new_full((num_voxels, features.shape[1]), -torch.inf)
    rows = index.unsqueeze(1).expand(-1, features.shape[1])
    greatest = greatest.scatter_reduce(0, rows, features[inside], "amax")
    empty = index.bincount(minlength=num_voxels) == 0
    return greatest.masked_fill(empty.unsqueeze(1), 0)


def _at_least_float32(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return tensor if tensor.dtype == torch.float64 else tensor.float()


# --- GPU ------------------------------------------------------------------------------------------


def group_points_on_device(
    points: Tensor,
    batch_index: Tensor,
    batch_size: int,
    point_range: Sequence[float],
    voxel_size: Sequence[float],
    shape: Sequence[int],
    max_points: int | None = None,
    max_voxels: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`group_points_reference`; the host waits once, for the number of voxels.

    That sizes the result, so it cannot be spared. Until then all tensors have P rows, those of
    voxels too: what is not a voxel, or not a point inside, is sorted to the end.
    """
    nx, ny, nz = shape
    cells_in_all = batch_size * nx * ny * nz
    flat = _flat_cells(points, batch_index, batch_size, point_range, voxel_size, shape)
    flat, order = flat.sort(stable=True)  # stable: points of a voxel stay in input order
    position = torch.arange(len(flat), device=flat.device)
    inside = flat < cells_in_all
    head = inside & (flat != torch.nn.functional.pad(flat, (1, 0), value=-1)[:-1])
    voxel = head.cumsum(0) - 1  # of each point, and after the last voxel whatever
    # Where each voxel starts; what is no head goes to one place too many, which is cut off.
    start = position.new_zeros(len(flat) + 1)
    start = start.scatter(0, voxel.where(head, len(flat)), position)[:-1]
    counts = torch.searchsorted(voxel.where(inside, len(flat)), position, right=True) - start
    real = position < head.sum()
    voxel_flat = flat[start]
    if max_points is not None:
        inside = inside & (position - start[voxel] < max_points)
        counts = counts.clamp(max=max_points)
    if max_voxels is not None:
        # Rows that are no voxel come last, as a sample too many.
        batch = (voxel_flat // (nx * ny * nz)).where(real, batch_size)
        real = real & _first_voxels(order[start], batch, max_voxels)
        number = (real.cumsum(0) - 1).where(real, -1)
        voxel = number[voxel]
        kept = (~real).byte().argsort(stable=True)  # those first, in their order
        voxel_flat, counts = voxel_flat[kept], counts[kept]
    point_voxel = torch.empty_like(position).scatter(0, order, voxel.where(inside, -1))
    num_voxels = int(real.sum())  # the host waits for the device here
    voxel_flat, counts = voxel_flat[:num_voxels], counts[:num_voxels].contiguous()
    parts = voxel_flat // (nx * ny * nz), voxel_flat // (ny * nz) % nx, voxel_flat // nz % ny
    return torch.stack([*parts, voxel_flat % nz], dim=1), counts, point_voxel


def _flat_cells(points, batch_index, batch_size, point_range, voxel_size, shape) -> Tensor:
    """(P,) cell of each point, the number of cells in all for one outside."""
    xyz = _at_least_float32(points)[:, :3]
    inside = (batch_index >= 0) & (batch_index < batch_size)
    flat = batch_index
    for axis, size in enumerate(shape):
        x, low, high = xyz[:, axis], point_range[axis], point_range[axis + 3]
        inside = inside & (x >= low) & (x < high)
        # By a tensor: a number torch would turn into its inverse and multiply, which rounds
        # otherwise than the CPU does. Clipped: rounding may not leave the grid.
        cell = ((x - low) / x.new_full((), voxel_size[axis])).floor().long().clamp(0, size - 1)
        flat = flat * size + cell
    return flat.where(inside, batch_size * shape[0] * shape[1] * shape[2])


# --- CPU and GPU paths, torch.library -------------------------------------------------------------


@torch.library.custom_op("bevstack::voxelize", mutates_args=(), device_types="cpu")
def _voxelize(
    points: Tensor,
    batch_index: Tensor,
    batch_size: int,
    point_range: Sequence[float],
    voxel_size: Sequence[float],
    shape: Sequence[int],
    max_points: int | None,
    max_voxels: int | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from .numba_voxelize import voxelize_points  # here: numba takes a second to import

    parts = voxelize_points(
        *(_at_least_float32(points).contiguous().numpy(), batch_index.contiguous().numpy()),
        *(batch_size, point_range, voxel_size, shape, max_points, max_voxels),
        num_threads=torch.get_num_threads(),
    )
    mean, coordinates, counts, point_voxel = map(torch.from_numpy, parts)
    return mean.to(points.dtype), coordinates, counts, point_voxel


@_voxelize.register_kernel("cuda")
def _(points, batch_index, *grid):
    from .triton_voxelize import mean_of_points

    coordinates, counts, point_voxel = group_points_on_device(points, batch_index, *grid)
    return mean_of_points(points, point_voxel, counts), coordinates, counts, point_voxel


@_voxelize.register_fake
def _(points, batch_index, batch_size, point_range, voxel_size, shape, max_points, max_voxels):
    voxels = torch.library.get_ctx().new_dynamic_size()
    shapes = (voxels, 4), (voxels,), (points.shape[0],)
    mean = points.new_empty(voxels, points.shape[1])
    return mean, *(points.new_empty(shape, dtype=torch.int64) for shape in shapes)


def _save_groups(ctx, inputs, output) -> None:
    _, coordinates, counts, point_voxel = output
    ctx.save_for_backward(point_voxel, counts)
    ctx.mark_non_differentiable(coordinates, counts, point_voxel)


def _mean_backward(ctx, grad: Tensor, *_):
    point_voxel, counts = ctx.saved_tensors
    share = grad / counts.clamp(min=1).unsqueeze(1).to(grad.dtype)
    # One row of zeros more, for the points that are in no voxel: -1 is the last row.
    share = torch.nn.functional.pad(share, (0, 0, 0, 1))
    to_points = share.index_select(0, point_voxel.where(point_voxel >= 0, counts.shape[0]))
    return to_points, *[None] * 7


_voxelize.register_autograd(_mean_backward, setup_context=_save_groups)


@torch.library.custom_op("bevstack::voxel_max", mutates_args=(), device_types="cpu")
def _voxel_max(features: Tensor, point_voxel: Tensor, num_voxels: int) -> tuple[Tensor, Tensor]:
    from .numba_voxelize import max_of_points

    parts = max_of_points(
        *(_at_least_float32(features).contiguous().numpy(), point_voxel.contiguous().numpy()),
        *(num_voxels, torch.get_num_threads()),
    )
    greatest, winner = map(torch.from_numpy, parts)
    return greatest.to(features.dtype), winner


@_voxel_max.register_kernel("cuda")
def _(features: Tensor, point_voxel: Tensor, num_voxels: int) -> tuple[Tensor, Tensor]:
    from .triton_voxelize import max_of_points

    return max_of_points(features, point_voxel, num_voxels)


@_voxel_max.register_fake
def _(features, point_voxel, num_voxels):
    greatest = features.new_empty(num_voxels, features.shape[1])
    return greatest, torch.empty_like(greatest, dtype=torch.int64)


def _save_winner(ctx, inputs, output) -> None:
    ctx.num_points = inputs[0].shape[0]
    ctx.save_for_backward(output[1])
    ctx.mark_non_differentiable(output[1])


def _max_backward(ctx, grad: Tensor, _):
    (winner,) = ctx.saved_tensors
    # A voxel without points writes to one row too many, which is cut off.
    spread = grad.new_zeros(ctx.num_points + 1, grad.shape[1])
    spread = spread.scatter(0, winner.where(winner >= 0, ctx.num_points), grad)
    return spread[: ctx.num_points], None, None


_voxel_max.register_autograd(_max_backward, setup_context=_save_winner)


# --- Public --------------------------------------------------------------------------------------


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
        points: (P, C) float, x, y, z first; P may be 0.
        batch_index: (P,) int64, the sample of each point; a point with another is in no voxel.
        batch_size: number of samples; any of them may hold no point.
        point_range: lower x, y, z and upper x, y, z, metres; the upper edge is outside.
        voxel_size: edges of a voxel along x, y, z, metres.
        max_points: keep at most this many points per voxel, the first by input order.
        max_voxels: keep at most this many voxels per sample, those with the first points.

    Returns:
        The voxels in order of batch, x, y, z.

    Raises:
        ValueError: if the shapes do not fit together, the range is no whole number of voxels, or
            a cap is not positive.
    """
    if points.ndim != 2 or points.shape[1] < 3 or batch_index.shape != points.shape[:1]:
        raise ValueError(
            "expected points (P, 3 or more) and batch_index (P,), not "
            f"{tuple(points.shape)} and {tuple(batch_index.shape)}"
        )
    for name, cap in (("max_points", max_points), ("max_voxels", max_voxels)):
        if cap is not None and cap < 1:
            raise ValueError(f"{name} is {cap}; it must be positive, or None to keep everything")
    low, high = point_range[:3], point_range[3:]
    nx, ny, nz = (
        num_cells(f"point_range along {axis}", b - a, size)
        for axis, a, b, size in zip("xyz", low, high, voxel_size, strict=True)
    )
    bounds = list(map(float, point_range)), list(map(float, voxel_size))
    features, coordinates, num_points, point_voxel = _voxelize(
        points, batch_index, batch_size, *bounds, [nx, ny, nz], max_points, max_voxels
    )
    return Voxels(features, coordinates, num_points, point_voxel, batch_size, (nx, ny, nz))


def pillar_max(point_features: Tensor, point_voxel: Tensor, num_voxels: int) -> Tensor:
    """Maximum over the points of every voxel; differentiable and deterministic.

    Where several points share the maximum, the first of them gets the gradient.

    Args:
        point_features: (P, C) float.
        point_voxel: (P,) int64 from :func:`voxelize`; points with -1 are left out.
        num_voxels: number of voxels V.

    Returns:
        (V, C); a voxel without points is zero.
    """
    return _voxel_max(point_features, point_voxel, num_voxels)[0]


def scatter_to_bev(
    features: Tensor, coordinates: Tensor, batch_size: int, shape: tuple[int, int]
) -> Tensor:
    """Put pillar features on a dense BEV map; differentiable.

    Args:
        features: (V, C).
        coordinates: (V, 4) int64 batch, x, y, z; no (batch, x, y) twice.
        batch_size: number of samples B.
        shape: cells along x and y.

    Returns:
        (B, C, X, Y), zero where there is no pillar; channels last in memory.
    """
    nx, ny = shape
    flat = (coordinates[:, 0] * nx + coordinates[:, 1]) * ny + coordinates[:, 2]
    canvas = features.new_zeros(batch_size * nx * ny, features.shape[1])
    canvas = canvas.index_copy(0, flat, features)
    return canvas.view(batch_size, nx, ny, features.shape[1]).movedim(-1, 1)
