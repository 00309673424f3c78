"""Voxelization on a GPU: checked against the definitions, then timed beside torch.unique."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from bench_geometry import ten_sweeps
from torch import Tensor

from bevstack.kernels import pillar_max, scatter_to_bev, voxelize
from bevstack.kernels.triton_voxelize import max_of_points, mean_of_points
from bevstack.kernels.voxelize import (
    group_points_on_device,
    group_points_reference,
    voxel_max_reference,
    voxel_mean_reference,
)

from .checks import DTYPES, Check, check, poisoned_memory
from .timing import Clock, Timing

# BEVFusion's voxels, and as many of each as it keeps in training.
POINT_RANGE, VOXEL_SIZE = (-54.0, -54.0, -5.0, 54.0, 54.0, 3.0), (0.075, 0.075, 0.2)
SHAPE, MAX_POINTS, MAX_VOXELS = (1440, 1440, 40), 10, 120_000


def checks(device: str, data: Path, dtypes: Sequence[torch.dtype] = DTYPES) -> Iterator[Check]:
    """Grouping with and without caps; mean and maximum; on a GPU a real cloud and gradients."""
    random = torch.Generator().manual_seed(0)
    points = torch.randn(400, 5, generator=random) * 2
    points[:200, :3] = (points[:200, :3] * 2).round() / 2  # on the edges of voxels
    batch = torch.randint(0, 3, (400,), generator=random)
    small = (-2.0, -1.0, -3.0, 2.0, 2.5, 3.0), (0.5, 0.25, 0.5), (8, 14, 12)
    for caps in ((None, None), (2, None), (None, 40), (2, 40)):
        yield from check_groups("small", points.to(device), batch.to(device), 3, *small, *caps)
        yield from check_groups("empty", points[:0].to(device), batch[:0].to(device), 3, *small)
    for channels in (1, 5, 64, 130):
        rows = torch.randint(-1, 20, (90,), generator=random).to(device)
        values = torch.randn(90, channels, generator=random).to(device)
        for dtype in dtypes:
            yield from check_reductions(f"{channels} channels", values.to(dtype), rows, 25)
    if device == "cuda":
        points = torch.from_numpy(ten_sweeps(data)).cuda()
        batch = torch.zeros(len(points), dtype=torch.int64, device=device)
        real = POINT_RANGE, VOXEL_SIZE, SHAPE
        for caps in ((None, None), (MAX_POINTS, MAX_VOXELS)):
            yield from check_groups("ten sweeps", points, batch, 1, *real, *caps)
        yield from check_public(points[:50_000], batch[:50_000])


def check_groups(case: str, points: Tensor, batch: Tensor, *args) -> Iterator[Check]:
    """The same numbers as the definition gives on the CPU."""
    with poisoned_memory():
        ours = group_points_on_device(points, batch, *args)
    exact = group_points_reference(points.cpu(), batch.cpu(), *args)
    for name, got, want in zip(("coordinates", "counts", "voxel of a point"), ours, exact):
        yield check(f"voxelize, {name}", case, got, want.to(got.device))


def check_reductions(case: str, values: Tensor, voxel: Tensor, num_voxels: int) -> Iterator[Check]:
    counts = (voxel == torch.arange(num_voxels, device=voxel.device)[:, None]).sum(1)
    with poisoned_memory():
        mean = mean_of_points(values, voxel, counts)
        greatest, winner = max_of_points(values, voxel, num_voxels)
    exact = values.double()
    yield check("voxel mean", case, mean, voxel_mean_reference(exact, voxel, counts))
    yield check("voxel maximum", case, greatest, voxel_max_reference(exact, voxel, num_voxels))
    held = values.gather(0, winner.clamp(min=0)).where(winner >= 0, 0)
    yield check("point of the maximum", case, held, greatest.double())


def check_public(points: Tensor, batch: Tensor) -> Iterator[Check]:
    """As users call them, with gradients, beside the definitions in float64 on the CPU."""
    args = 1, POINT_RANGE, VOXEL_SIZE
    cloud = points.detach().requires_grad_()
    voxels = voxelize(cloud, batch, *args)
    greatest = pillar_max(cloud, voxels.point_voxel, len(voxels.features))
    ours = _map_and_gradient(cloud, voxels.features, greatest, voxels.coordinates)

    # Grouped in float32 here too, so that points on edges are where they were.
    groups = group_points_reference(points.cpu(), batch.cpu(), *args, SHAPE)
    coordinates, counts, voxel = groups
    cloud = points.detach().cpu().double().requires_grad_()
    mean = voxel_mean_reference(cloud, voxel, counts)
    greatest = voxel_max_reference(cloud, voxel, len(counts))
    exact = _map_and_gradient(cloud, mean, greatest, coordinates)
    for name, got, want in zip(("means", "map of maxima", "gradient to points"), ours, exact):
        yield check(f"voxelize by autograd, {name}", "sweep", got, want.to(got.device))


def _map_and_gradient(
    cloud: Tensor, mean: Tensor, greatest: Tensor, coordinates: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    pillar = coordinates[:, 1] * SHAPE[1] + coordinates[:, 2]
    lowest = torch.nn.functional.pad(pillar, (1, 0), value=-1)[:-1] != pillar  # voxel of a pillar
    bev = scatter_to_bev(greatest[lowest], coordinates[lowest], 1, SHAPE[:2])
    loss = mean.sin().sum() + bev.cos().sum()
    return mean.detach(), bev.detach(), torch.autograd.grad(loss, cloud)[0]


def timings(clock: Clock, bandwidth: float, data: Path) -> Iterator[Timing]:
    """Voxels of ten sweeps and their means."""
    points = torch.from_numpy(ten_sweeps(data)).cuda()
    batch = torch.zeros(len(points), dtype=torch.int64, device=points.device)
    voxels = voxelize(points, batch, 1, POINT_RANGE, VOXEL_SIZE)
    result = voxels.features, voxels.coordinates, voxels.num_points, voxels.point_voxel
    floor = 1e6 * sum(part.nbytes for part in (points, batch, *result)) / bandwidth
    low, size = points.new_tensor(POINT_RANGE[:3]), points.new_tensor(VOXEL_SIZE)
    high = points.new_tensor(POINT_RANGE[3:])

    def by_unique() -> Tensor:
        inside = ((points[:, :3] >= low) & (points[:, :3] < high)).all(1)
        kept = points[inside]
        cells = torch.cat([batch[inside, None], ((kept[:, :3] - low) / size).floor().long()], 1)
        cells, inverse, counts = cells.unique(dim=0, return_inverse=True, return_counts=True)
        total = kept.new_zeros(len(cells), 5).index_add(0, inverse, kept)
        return total / counts[:, None]

    args = points, batch, 1, POINT_RANGE, VOXEL_SIZE
    task = f"voxelize {len(points):,} points, {len(voxels.coordinates):,} voxels"
    yield clock.time(task, "torch.unique + index_add", by_unique, floor)
    yield clock.time(task, "ours", lambda: voxelize(*args), floor)
    yield clock.time(task, "ours, with caps", lambda: voxelize(*args, MAX_POINTS, MAX_VOXELS))
    mean = voxels.point_voxel, voxels.num_points
    yield clock.time("mean of voxels", "ours", lambda: mean_of_points(points, *mean))
