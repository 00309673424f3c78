"""BEV pooling on a GPU: checked against float64, then timed beside what people use."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from bench_geometry import BEVFUSION, LARGE, Geometry, frustum_cells, rig_of
from torch import Tensor

from bevstack.kernels.bev_pool import (
    BEVPoolPlan,
    bev_pool,
    bev_pool_backward_triton,
    bev_pool_reference,
    bev_pool_triton,
    plan_bev_pool,
    plan_on_device,
)

from . import intervals
from .checks import DTYPES, Check, check, poisoned_memory
from .timing import Clock, Timing

CHANNELS = 80


@dataclass(frozen=True)
class Lift:
    """Random depth, features and gradient on the cells of a camera rig."""

    name: str
    depth: Tensor  # (N, D, H, W)
    features: Tensor  # (N, H, W, C)
    grad: Tensor  # (G, C)
    cell: Tensor  # (N, D, H, W)

    @property
    def num_cells(self) -> int:
        return len(self.grad)

    @property
    def num_bytes(self) -> int:
        """Of depth, features and map, each moved once."""
        return sum(part.nbytes for part in (self.depth, self.features, self.grad))

    def to(self, dtype: torch.dtype) -> Lift:
        depth, features, grad = (
            part.detach().to(dtype, copy=True) for part in (self.depth, self.features, self.grad)
        )
        return Lift(self.name, depth, features, grad, self.cell)


def make_lift(name: str, cell: Tensor, num_cells: int, channels: int = CHANNELS) -> Lift:
    N, D, H, W = cell.shape
    random = torch.Generator(cell.device).manual_seed(0)
    normal = partial(torch.randn, generator=random, device=cell.device)
    depth = normal(N, D, H, W).softmax(1)
    return Lift(name, depth, normal(N, H, W, channels), normal(num_cells, channels), cell)


def small_lifts(device: str) -> Iterator[Lift]:
    """Edge cases: odd sizes, one channel, all in one cell, no point, more rows than a block."""
    random = torch.Generator().manual_seed(0)
    shapes = {
        "odd sizes": (3, 5, 7, 11, 13, 29),
        "one channel": (1, 4, 9, 3, 1, 12),
        "one column": (1, 6, 8, 1, 16, 5),
        "many channels": (1, 2, 3, 2, 200, 6),
        "many rows": (1, 12, 37, 2, 5, 9),
        "one cell": (2, 4, 6, 3, 8, 1),
        "empty cells": (1, 2, 3, 2, 8, 300),
    }
    for name, (N, D, H, W, C, cells) in shapes.items():
        cell = torch.randint(-1, cells, (N, D, H, W), generator=random)
        for h in range(1, H):  # a column stays in its cell more often than not
            stay = torch.rand(N, D, W, generator=random) < 0.7
            cell[:, :, h] = cell[:, :, h - 1].where(stay, cell[:, :, h])
        yield make_lift(name, cell.to(device), cells, C)
    yield make_lift("no point inside", torch.full((1, 2, 3, 2), -1, device=device), 7, 8)


def real_lift(geometry: Geometry, data: Path) -> Lift:
    cell = torch.from_numpy(frustum_cells(geometry, *rig_of(data))).cuda()
    return make_lift(geometry.name, cell, geometry.grid.num_cells)


# --- Checks ---------------------------------------------------------------------------------------


def checks(device: str, data: Path, dtypes: Sequence[torch.dtype] = DTYPES) -> Iterator[Check]:
    """All paths on edge cases and, on a GPU, at full size."""
    for lift in small_lifts(device):
        yield from check_plan(lift)
        for dtype in dtypes:
            yield from check_kernels(lift.to(dtype))
    if device == "cuda":
        for geometry in (BEVFUSION, LARGE):
            lift = real_lift(geometry, data)
            yield from check_plan(lift)
            for dtype in dtypes:
                yield from check_kernels(lift.to(dtype))
                yield from check_public(lift.to(dtype))
            torch.cuda.empty_cache()


def check_plan(lift: Lift) -> Iterator[Check]:
    """Every point is in the run of its cell, in order; a run that is not there is not listed."""
    plan = BEVPoolPlan(*plan_on_device(lift.cell, lift.num_cells))
    W, num_runs = lift.cell.shape[-1], int(plan.cell_first[-1])
    first, rows, cells, place = plan.by_column[:num_runs].long().T
    most = int(rows.max()) if num_runs else 0
    row = torch.arange(most, device=first.device)
    inside = row < rows[:, None]
    seen = torch.full_like(lift.cell.flatten(), -1)
    seen[(first[:, None] + row * W)[inside]] = cells[:, None].expand(-1, most)[inside]
    yield check("plan, points", lift.name, seen, lift.cell.flatten())
    yield check("plan, by cell", lift.name, plan.by_cell[place, 0].long(), first)
    counts = cells.bincount(minlength=lift.num_cells)
    yield check("plan, runs of a cell", lift.name, plan.cell_first.diff().long(), counts)
    order = cells.argsort(stable=True)
    yield check("plan, place", lift.name, place[order], torch.arange(len(order)).to(place))


def exact_results(lift: Lift) -> list[Tensor]:
    """Map and gradients by the definition, in float64."""
    depth, features = lift.depth.double(), lift.features.double()
    inputs = depth.requires_grad_(), features.requires_grad_()
    pooled = bev_pool_reference(*inputs, lift.cell, lift.num_cells)
    return [pooled.detach(), *torch.autograd.grad(pooled, inputs, lift.grad.double())]


NAMES = "map", "gradient to depth", "gradient to features"


def check_kernels(lift: Lift) -> Iterator[Check]:
    """The Triton kernels, and the yardstick as well."""
    exact = exact_results(lift)
    with poisoned_memory():
        plan = plan_on_device(lift.cell, lift.num_cells)
        pooled = bev_pool_triton(lift.depth, lift.features, *plan)
        ours = pooled, *bev_pool_backward_triton(lift.grad, lift.depth, lift.features, *plan[2:])
    by_cell, by_pixel = (intervals.group(lift.cell, by) for by in (False, True))
    if len(by_cell.point):
        pooled = intervals.forward(lift.depth, lift.features, by_cell, lift.num_cells)
        theirs = pooled, *intervals.backward(lift.grad, lift.depth, lift.features, by_pixel)
        for name, got, want in zip(NAMES, theirs, exact):
            yield check(f"interval sum, {name}", lift.name, got, want)
    for name, got, want in zip(NAMES, ours, exact):
        yield check(f"bev_pool, {name}", lift.name, got, want)


def check_public(lift: Lift) -> Iterator[Check]:
    """As users call it: autograd, without waiting for the device, and the same bits twice."""
    results = []
    inputs = lift.depth.requires_grad_(), lift.features.requires_grad_()
    for _ in range(2):
        torch.cuda.set_sync_debug_mode("error")
        try:
            pooled = bev_pool(*inputs, lift.cell, lift.num_cells)
            results.append((pooled, *torch.autograd.grad(pooled, inputs, lift.grad)))
        finally:
            torch.cuda.set_sync_debug_mode("default")
    for name, got, want in zip(NAMES, results[0], exact_results(lift)):
        yield check(f"bev_pool by autograd, {name}", lift.name, got.detach(), want)
    for name, got, again in zip(NAMES, *results):
        differ = (got != again).sum()
        yield check(f"bev_pool twice, {name}", lift.name, differ, torch.zeros_like(differ))


# --- Timings --------------------------------------------------------------------------------------


def timings(clock: Clock, bandwidth: float, data: Path) -> Iterator[Timing]:
    """Forward, backward and plan on both geometries in all types."""
    for geometry in (BEVFUSION, LARGE):
        lift = real_lift(geometry, data)
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            yield from time_lift(clock, bandwidth, lift.to(dtype))
            torch.cuda.empty_cache()
        task, cell, G = f"pool plan, {lift.name}", lift.cell, lift.num_cells
        yield clock.time(task, "sort points by cell", lambda c=cell: intervals.group(c, False))
        yield clock.time(task, "ours", lambda c=cell, g=G: plan_bev_pool(c, g))


def time_lift(clock: Clock, bandwidth: float, lift: Lift) -> Iterator[Timing]:
    """Materialise + index_add comes first: the others are compared with it."""
    name = f"{lift.name} {str(lift.depth.dtype).removeprefix('torch.')}"
    floor = 1e6 * lift.num_bytes / bandwidth
    by_cell, by_pixel = (intervals.group(lift.cell, by) for by in (False, True))
    inputs = lift.depth.requires_grad_(), lift.features.requires_grad_()
    methods = differentiable(lift, by_cell)
    task = f"pool forward, {name}"
    with torch.no_grad():
        for method, pool in methods.items():
            yield clock.time(task, method, partial(pool, *inputs), floor)
        interval = partial(intervals.forward, *inputs, by_cell, lift.num_cells)
        yield clock.time(task, "interval sum in Triton", interval, floor)
    task = f"pool backward, {name}"
    for method, pool in methods.items():
        pooled = pool(*inputs)
        grad = lift.grad.to(pooled.dtype)
        call = partial(torch.autograd.grad, pooled, inputs, grad, retain_graph=True)
        yield clock.time(task, method, call, floor)
    with torch.no_grad():
        interval = partial(intervals.backward, lift.grad, *inputs, by_pixel)
        yield clock.time(task, "interval sum in Triton", interval, floor)


def differentiable(lift: Lift, by_cell: intervals.Intervals) -> dict[str, Callable]:
    """What autograd goes through."""
    plan = plan_bev_pool(lift.cell, lift.num_cells)
    points = by_cell.point.long()
    counts = lift.cell.flatten()[points].bincount(minlength=lift.num_cells)

    def reduce_segments(depth: Tensor, features: Tensor) -> Tensor:
        lifted = depth.float().unsqueeze(-1) * features.float().unsqueeze(1)
        lifted = lifted.flatten(0, 3)[points]
        return torch.segment_reduce(lifted, "sum", lengths=counts, initial=0.0)

    return {
        "materialise + index_add": lambda d, f: bev_pool_reference(d, f, lift.cell, lift.num_cells),
        "materialise + segment_reduce, float32": reduce_segments,
        "ours": lambda d, f: bev_pool(d, f, lift.cell, lift.num_cells, plan),
    }
