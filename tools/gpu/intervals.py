"""The yardstick for BEV pooling: sums over intervals of points sorted by cell, in Triton.

The formulation of BEVDet's ``bev_pool_v2`` (Huang et al., 2022), written anew: depth and features
are multiplied as they are summed, a program owns the points of a cell (forward) or of a pixel
(backward) and takes several at once.
"""

# pyright: reportCallIssue=false, reportArgumentType=false, reportIndexIssue=false

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCKS = {"BLOCK_P": 8, "num_warps": 2}


@dataclass(frozen=True)
class Intervals:
    """Q points inside in order of their group, and where each of S groups starts."""

    point: Tensor  # (Q,) int32
    pixel: Tensor  # (Q,) int32
    cell: Tensor  # (Q,) int32
    first: Tensor  # (S + 1,) int32


def group(cell: Tensor, by_pixel: bool) -> Intervals:
    """Sort the points inside by cell, or by pixel; (N, D, H, W) cells."""
    _, D, H, W = cell.shape
    point = (cell.flatten() >= 0).nonzero().squeeze(1)
    pixel = point // (D * H * W) * (H * W) + point % (H * W)
    key = pixel if by_pixel else cell.flatten()[point]
    key, order = key.sort(stable=True)
    counts = key.unique_consecutive(return_counts=True)[1]
    first = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    parts = point[order], pixel[order], cell.flatten()[point[order]], first
    return Intervals(*(part.int() for part in parts))


@triton.jit
def forward_kernel(
    depth_ptr,  # (N, D, H, W)
    features_ptr,  # (N, H, W, C)
    point_ptr,  # (Q,)
    pixel_ptr,  # (Q,)
    cell_ptr,  # (Q,)
    first_ptr,  # (S + 1,)
    pooled_ptr,  # (G, C), zeroed
    C,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    group = tl.program_id(0)
    channel = tl.arange(0, BLOCK_C)
    first, last = tl.load(first_ptr + group), tl.load(first_ptr + group + 1)
    total = tl.zeros((BLOCK_C,), tl.float32)
    for start in range(first, last, BLOCK_P):
        entry = start + tl.arange(0, BLOCK_P)
        point = tl.load(point_ptr + entry, mask=entry < last, other=0)
        pixel = tl.load(pixel_ptr + entry, mask=entry < last, other=0).to(tl.int64)
        weight = tl.load(depth_ptr + point, mask=entry < last, other=0.0).to(tl.float32)
        feature = tl.load(
            features_ptr + pixel[:, None] * C + channel[None, :],
            mask=(entry < last)[:, None] & (channel < C)[None, :],
            other=0.0,
        )
        total += tl.sum(weight[:, None] * feature.to(tl.float32), axis=0)
    cell = tl.load(cell_ptr + first).to(tl.int64)
    tl.store(pooled_ptr + cell * C + channel, total, mask=channel < C)


@triton.jit
def backward_kernel(
    grad_ptr,  # (G, C)
    depth_ptr,  # (N, D, H, W)
    features_ptr,  # (N, H, W, C)
    point_ptr,  # (Q,)
    pixel_ptr,  # (Q,)
    cell_ptr,  # (Q,)
    first_ptr,  # (S + 1,)
    grad_depth_ptr,  # (N, D, H, W), zeroed
    grad_features_ptr,  # (N, H, W, C), zeroed
    C,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    group = tl.program_id(0)
    channel = tl.arange(0, BLOCK_C)
    first, last = tl.load(first_ptr + group), tl.load(first_ptr + group + 1)
    place = tl.load(pixel_ptr + first).to(tl.int64) * C + channel
    feature = tl.load(features_ptr + place, mask=channel < C, other=0.0).to(tl.float32)
    total = tl.zeros((BLOCK_C,), tl.float32)
    for start in range(first, last, BLOCK_P):
        entry = start + tl.arange(0, BLOCK_P)
        point = tl.load(point_ptr + entry, mask=entry < last, other=0)
        cell = tl.load(cell_ptr + entry, mask=entry < last, other=0).to(tl.int64)
        weight = tl.load(depth_ptr + point, mask=entry < last, other=0.0).to(tl.float32)
        grad = tl.load(
            grad_ptr + cell[:, None] * C + channel[None, :],
            mask=(entry < last)[:, None] & (channel < C)[None, :],
            other=0.0,
        ).to(tl.float32)
        total += tl.sum(weight[:, None] * grad, axis=0)
        product = tl.sum(feature[None, :] * grad, axis=1)
        tl.store(grad_depth_ptr + point, product, mask=entry < last)
    tl.store(grad_features_ptr + place, total, mask=channel < C)


def forward(depth: Tensor, features: Tensor, by_cell: Intervals, num_cells: int) -> Tensor:
    """(G, C) sums; ``by_cell`` is ``group(cell, by_pixel=False)``."""
    C = features.shape[-1]
    pooled = features.new_zeros(num_cells, C)
    forward_kernel[(len(by_cell.first) - 1,)](
        *(depth, features, by_cell.point, by_cell.pixel, by_cell.cell, by_cell.first, pooled, C),
        BLOCK_C=triton.next_power_of_2(C),
        **BLOCKS,
    )
    return pooled


def backward(
    grad: Tensor, depth: Tensor, features: Tensor, by_pixel: Intervals
) -> tuple[Tensor, Tensor]:
    """Gradients; ``by_pixel`` is ``group(cell, by_pixel=True)``."""
    C = features.shape[-1]
    grad_depth, grad_features = torch.zeros_like(depth), torch.zeros_like(features)
    backward_kernel[(len(by_pixel.first) - 1,)](
        *(grad, depth, features, by_pixel.point, by_pixel.pixel, by_pixel.cell, by_pixel.first),
        *(grad_depth, grad_features, C),
        BLOCK_C=triton.next_power_of_2(C),
        **BLOCKS,
    )
    return grad_depth, grad_features
