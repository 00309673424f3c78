"""BEV pooling on the GPU: Triton kernels over the runs of a plan (see ``numba_bev_pool.py``).

Every output element belongs to one program, so there are no atomics: sums have a fixed order.

Forward goes cell by cell, because the map is most of the bytes (20 of 27 MB at BEVFusion's
geometry in bfloat16): each cell is written once, zeros included. Backward goes column by column,
as two small matrix products per block of runs, with R runs and H rows of one image column:

    grad_features[h, c] = sum over r of weight[h, r] * grad[cell[r], c]
    grad_depth[h, r] = sum over c of features[h, c] * grad[cell[r], c]

Block sizes are not tuned: no figure was measured on a GPU yet.
"""

# Offsets of elements are int64: N * H * W * C and G * C may pass 2**31. Points and cells do not.

# A checker sees neither launch options nor that constants are passed as plain numbers.
# pyright: reportCallIssue=false, reportArgumentType=false, reportIndexIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def pool_kernel(
    depth_ptr,  # (N, D, H, W)
    features_ptr,  # (N, H, W, C)
    cell_first_ptr,  # (G + 1,)
    by_cell_ptr,  # (R, 2) first point, number of points
    pooled_ptr,  # (G, C)
    num_cells,
    D,
    HW,
    W,
    C,
    BLOCK_G: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    cell = tl.program_id(0) * BLOCK_G + tl.arange(0, BLOCK_G)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    real, in_range = cell < num_cells, channel < C
    first = tl.load(cell_first_ptr + cell, mask=real, other=0)
    count = tl.load(cell_first_ptr + cell + 1, mask=real, other=0) - first
    total = tl.zeros((BLOCK_G, BLOCK_C), tl.float32)
    for k in range(tl.max(count)):
        run = (first + k).to(tl.int64)
        point = tl.load(by_cell_ptr + run * 2, mask=k < count, other=0)
        rows = tl.load(by_cell_ptr + run * 2 + 1, mask=k < count, other=0)
        pixel = (point // (D * HW) * HW + point % HW).to(tl.int64)
        for low in range(0, tl.max(rows), BLOCK_H):
            row = low + tl.arange(0, BLOCK_H)
            inside = row[None, :] < rows[:, None]  # (G, H)
            weight = tl.load(depth_ptr + point[:, None] + row[None, :] * W, mask=inside, other=0.0)
            start = (pixel[:, None] + row[None, :] * W) * C
            feature = tl.load(
                features_ptr + start[:, :, None] + channel[None, None, :],
                mask=inside[:, :, None] & in_range[None, None, :],
                other=0.0,
            )
            product = weight.to(tl.float32)[:, :, None] * feature.to(tl.float32)
            total += tl.sum(product, axis=1)
    place = cell.to(tl.int64)[:, None] * C + channel[None, :]
    tl.store(pooled_ptr + place, total, mask=real[:, None] & in_range[None, :])


@triton.jit
def _runs_of_column(run, last, by_column_ptr, row, D, HW, W):
    """Of a block of runs: cells (R,), and points (H, R) with the mask of those that exist."""
    real = run < last
    entry = by_column_ptr + run.to(tl.int64) * 3
    first = tl.load(entry, mask=real, other=0)
    rows = tl.load(entry + 1, mask=real, other=0)
    cell = tl.load(entry + 2, mask=real, other=0)
    top = first % HW // W
    inside = (row[:, None] >= top[None, :]) & (row[:, None] < (top + rows)[None, :])
    return cell, first[None, :] + (row[:, None] - top[None, :]) * W, inside


@triton.jit
def features_grad_kernel(
    grad_ptr,  # (G, C)
    depth_ptr,  # (N, D, H, W)
    column_first_ptr,  # (N * W + 1,)
    by_column_ptr,  # (R, 3) first point, number of points, cell
    grad_features_ptr,  # (N, H, W, C)
    D,
    H,
    W,
    C,
    BLOCK_H: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    DOT_TYPE: tl.constexpr,
):
    column = tl.program_id(0)
    row = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    channel = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    in_range = channel < C
    last = tl.load(column_first_ptr + column + 1)
    total = tl.zeros((BLOCK_H, BLOCK_C), tl.float32)
    for start in range(tl.load(column_first_ptr + column), last, BLOCK_R):
        run = start + tl.arange(0, BLOCK_R)
        cell, point, inside = _runs_of_column(run, last, by_column_ptr, row, D, H * W, W)
        weight = tl.load(depth_ptr + point, mask=inside, other=0.0)
        grad = tl.load(
            grad_ptr + cell.to(tl.int64)[:, None] * C + channel[None, :],
            mask=(run < last)[:, None] & in_range[None, :],
            other=0.0,
        )
        total += tl.dot(weight.to(DOT_TYPE), grad.to(DOT_TYPE), input_precision="ieee")
    pixel = (column // W * H + row).to(tl.int64) * W + column % W
    place = grad_features_ptr + pixel[:, None] * C + channel[None, :]
    tl.store(place, total, mask=(row < H)[:, None] & in_range[None, :])


@triton.jit
def depth_grad_kernel(
    grad_ptr,  # (G, C)
    features_ptr,  # (N, H, W, C)
    column_first_ptr,  # (N * W + 1,)
    by_column_ptr,  # (R, 3) first point, number of points, cell
    grad_depth_ptr,  # (N, D, H, W), zeroed: points outside the grid are in no run
    D,
    H,
    W,
    C,
    BLOCK_H: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    DOT_TYPE: tl.constexpr,
):
    column = tl.program_id(0)
    row = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    last = tl.load(column_first_ptr + column + 1)
    pixel = (column // W * H + row).to(tl.int64) * W + column % W
    for start in range(tl.load(column_first_ptr + column), last, BLOCK_R):
        run = start + tl.arange(0, BLOCK_R)
        cell, point, inside = _runs_of_column(run, last, by_column_ptr, row, D, H * W, W)
        product = tl.zeros((BLOCK_H, BLOCK_R), tl.float32)
        for low in range(0, C, BLOCK_C):
            channel = low + tl.arange(0, BLOCK_C)
            in_range = channel < C
            feature = tl.load(
                features_ptr + pixel[:, None] * C + channel[None, :],
                mask=(row < H)[:, None] & in_range[None, :],
                other=0.0,
            )
            grad = tl.load(
                grad_ptr + cell.to(tl.int64)[None, :] * C + channel[:, None],
                mask=(run < last)[None, :] & in_range[:, None],
                other=0.0,
            )
            product += tl.dot(feature.to(DOT_TYPE), grad.to(DOT_TYPE), input_precision="ieee")
        tl.store(grad_depth_ptr + point, product, mask=inside)


# Fixed for now; the GPU check of the next step tunes them. (H: image rows, R: runs, G: cells.)
POOL_BLOCKS = {"BLOCK_G": 4, "BLOCK_H": 4, "enable_fp_fusion": True}
BACKWARD_BLOCKS = {"BLOCK_H": 32, "BLOCK_R": 16, "enable_fp_fusion": True}
# This kernel loops over channels. With 128 at once it spills registers in float32.
DEPTH_GRAD_CHANNELS = 32


def channel_block(num_channels: int, least: int, most: int) -> int:
    """The power of two that holds the channels, within bounds."""
    return min(max(triton.next_power_of_2(num_channels), least), most)


def dot_type(*tensors: Tensor) -> tl.dtype:
    """Products in half precision where all factors have it: each is exact in a float32 sum."""
    types = {tensor.dtype for tensor in tensors}
    if types == {torch.bfloat16}:
        return tl.bfloat16
    return tl.float16 if types == {torch.float16} else tl.float32


def pool_runs(depth: Tensor, features: Tensor, cell_first: Tensor, by_cell: Tensor) -> Tensor:
    """Sum depth times features per cell; the arguments are those of ``bev_pool`` and its plan."""
    _, D, H, W = depth.shape
    num_cells, C = cell_first.shape[0] - 1, features.shape[-1]
    pooled = torch.empty(num_cells, C, dtype=features.dtype, device=features.device)
    if pooled.numel() == 0:
        return pooled
    block = channel_block(C, 16, 128)
    blocks = triton.cdiv(num_cells, POOL_BLOCKS["BLOCK_G"]), triton.cdiv(C, block)
    with torch.cuda.device_of(features):  # Triton launches on the current device
        pool_kernel[blocks](
            *(depth.contiguous(), features.contiguous(), cell_first, by_cell.contiguous(), pooled),
            *(num_cells, D, H * W, W, C),
            BLOCK_C=block,
            **POOL_BLOCKS,
        )
    return pooled


def pool_runs_backward(
    grad: Tensor, depth: Tensor, features: Tensor, column_first: Tensor, by_column: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of :func:`pool_runs` to depth and features."""
    _, D, H, W = depth.shape
    C = features.shape[-1]
    grad, depth, features = grad.contiguous(), depth.contiguous(), features.contiguous()
    grad_depth, grad_features = torch.zeros_like(depth), torch.empty_like(features)
    if depth.numel() == 0 or C == 0:
        return grad_depth, grad_features.zero_()
    columns, row_blocks = column_first.shape[0] - 1, triton.cdiv(H, BACKWARD_BLOCKS["BLOCK_H"])
    runs = column_first, by_column.contiguous()
    block = channel_block(C, 16, 128)
    with torch.cuda.device_of(features):
        features_grad_kernel[columns, row_blocks, triton.cdiv(C, block)](
            *(grad, depth, *runs, grad_features, D, H, W, C),
            BLOCK_C=block,
            DOT_TYPE=dot_type(grad, depth),
            **BACKWARD_BLOCKS,
        )
        depth_grad_kernel[columns, row_blocks](
            *(grad, features, *runs, grad_depth, D, H, W, C),
            BLOCK_C=DEPTH_GRAD_CHANNELS,
            DOT_TYPE=dot_type(grad, features),
            **BACKWARD_BLOCKS,
        )
    return grad_depth, grad_features
