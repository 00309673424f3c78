"""Mean and maximum over the points of a voxel on the GPU: Triton kernels over sorted points.

A program owns its voxels and walks through their points in input order: no atomics, so the result
is the same on every run.
"""

# A checker sees neither launch options nor that constants are passed as plain numbers.
# pyright: reportCallIssue=false, reportArgumentType=false, reportIndexIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def mean_kernel(
    features_ptr,  # (P, C)
    order_ptr,  # (P,) int64 points, grouped by voxel
    first_ptr,  # (V + 1,) int64 where each group starts in order
    mean_ptr,  # (V, C)
    num_voxels,
    C,
    BLOCK_V: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    voxel = tl.program_id(0).to(tl.int64) * BLOCK_V + tl.arange(0, BLOCK_V)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    real, in_range = voxel < num_voxels, channel < C
    first = tl.load(first_ptr + voxel, mask=real, other=0)
    count = tl.load(first_ptr + voxel + 1, mask=real, other=0) - first
    total = tl.zeros((BLOCK_V, BLOCK_C), tl.float32)
    for k in range(tl.max(count)):
        point = tl.load(order_ptr + first + k, mask=k < count, other=0)
        mask = (k < count)[:, None] & in_range[None, :]
        place = features_ptr + point[:, None] * C + channel[None, :]
        total += tl.load(place, mask=mask, other=0.0).to(tl.float32)
    mean = total / tl.maximum(count, 1).to(tl.float32)[:, None]
    place = mean_ptr + voxel[:, None] * C + channel[None, :]
    tl.store(place, mean, mask=real[:, None] & in_range[None, :])


@triton.jit
def max_kernel(
    features_ptr,  # (P, C)
    order_ptr,  # (P,) int64 points, grouped by voxel
    first_ptr,  # (V + 1,) int64 where each group starts in order
    greatest_ptr,  # (V, C)
    winner_ptr,  # (V, C) int64
    num_voxels,
    C,
    BLOCK_V: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    voxel = tl.program_id(0).to(tl.int64) * BLOCK_V + tl.arange(0, BLOCK_V)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    real, in_range = voxel < num_voxels, channel < C
    first = tl.load(first_ptr + voxel, mask=real, other=0)
    count = tl.load(first_ptr + voxel + 1, mask=real, other=0) - first
    greatest = tl.zeros((BLOCK_V, BLOCK_C), tl.float32)
    winner = tl.full((BLOCK_V, BLOCK_C), -1, tl.int64)
    for k in range(tl.max(count)):
        point = tl.load(order_ptr + first + k, mask=k < count, other=0)
        mask = (k < count)[:, None] & in_range[None, :]
        place = features_ptr + point[:, None] * C + channel[None, :]
        value = tl.load(place, mask=mask, other=0.0).to(tl.float32)
        # NaN wins, as in torch.amax; the first of equals wins.
        better = (value > greatest) | ((value != value) & (greatest == greatest))
        better = mask & ((winner < 0) | better)
        greatest = tl.where(better, value, greatest)
        winner = tl.where(better, point[:, None], winner)
    place = voxel[:, None] * C + channel[None, :]
    mask = real[:, None] & in_range[None, :]
    tl.store(greatest_ptr + place, greatest, mask=mask)
    tl.store(winner_ptr + place, winner, mask=mask)


def group_by_voxel(point_voxel: Tensor, num_voxels: int) -> tuple[Tensor, Tensor]:
    """Points in order of voxel and input, and where each voxel starts: (P,) and (V + 1,)."""
    voxel, order = point_voxel.sort(stable=True)
    bounds = torch.arange(num_voxels + 1, device=voxel.device)
    return order, torch.searchsorted(voxel, bounds)


def blocks_of(num_channels: int) -> dict[str, int]:
    """Block sizes for a number of channels, 512 elements at a time; not tuned yet."""
    block = min(triton.next_power_of_2(max(num_channels, 1)), 128)
    return {"BLOCK_V": 512 // block, "BLOCK_C": block}


def mean_of_points(features: Tensor, point_voxel: Tensor, counts: Tensor) -> Tensor:
    """Mean over the points of every voxel: (P, C) to (V, C)."""
    num_voxels, C = counts.shape[0], features.shape[1]
    mean = torch.empty(num_voxels, C, dtype=features.dtype, device=features.device)
    if mean.numel():
        order, first = group_by_voxel(point_voxel, num_voxels)
        blocks = blocks_of(C)
        grid = triton.cdiv(num_voxels, blocks["BLOCK_V"]), triton.cdiv(C, blocks["BLOCK_C"])
        args = features.contiguous(), order, first, mean, num_voxels, C
        with torch.cuda.device_of(features):  # Triton launches on the current device
            mean_kernel[grid](*args, **blocks, enable_fp_fusion=True)
    return mean


def max_of_points(features: Tensor, point_voxel: Tensor, num_voxels: int) -> tuple[Tensor, Tensor]:
    """Maximum over the points of every voxel, and the point that has it: (V, C) both."""
    C = features.shape[1]
    greatest = torch.empty(num_voxels, C, dtype=features.dtype, device=features.device)
    winner = torch.empty(num_voxels, C, dtype=torch.int64, device=features.device)
    if greatest.numel():
        order, first = group_by_voxel(point_voxel, num_voxels)
        blocks = blocks_of(C)
        grid = triton.cdiv(num_voxels, blocks["BLOCK_V"]), triton.cdiv(C, blocks["BLOCK_C"])
        args = features.contiguous(), order, first, greatest, winner, num_voxels, C
        with torch.cuda.device_of(features):
            max_kernel[grid](*args, **blocks, enable_fp_fusion=True)
    return greatest, winner
