"""BEV pooling on the GPU: Triton kernels over the runs of a plan (see ``numba_bev_pool.py``).

No time was measured on a GPU yet: what follows is counted, from BEVFusion's geometry on a real
nuScenes rig in bfloat16 (6 x 118 x 32 x 88 points, 80 channels, 360 x 360 cells; 1,676,110 points
inside, 91,137 runs, 73,352 cells touched, 61,640 of them by one run). The floor, depth, features
and map moved once, is 27.4 MB. ``tools/gpu_check.py`` measures what is said here.

- Cell by cell over points (``bev_pool_v2``) or over runs, each program reads the pixels of its
  points: 1,676,110 rows of 160 bytes, 268 MB through the second-level cache, ten times the floor,
  and 32 bytes fetched for each 2-byte weight. A cell's points lie in other columns than its
  neighbours', so the first-level cache helps little. Best on a CPU, whose cache holds a column.
- Column by column, a column's features (5 KB) serve all its runs as a matrix product of weights
  (runs, rows) and features (rows, channels): 0.5 GFLOP of half-precision products, next to nothing
  on tensor cores. Its sums are per run. A cell of one run is written at once; the runs of other
  cells are left in float32 in order of their cell (29,497 runs, 9.4 MB), where a second kernel adds
  them up. With atomics that kernel would not be needed, but the order of a sum would change.
- Channels in tiles would read weights and runs once per tile, and save nothing: 128 channels of a
  block of runs fit into registers.

So forward goes column by column, then cell by cell. A program takes COLUMNS columns side by side,
whose weights share the 32 bytes, and one of PARTS of their runs: otherwise 528 columns leave 132
multiprocessors waiting. Through the second-level cache go weights (13 MB), features (PARTS times,
22 MB), runs (2 MB), sums of runs (twice 9 MB) and the map (21 MB): 76 MB, 2.8 times the floor, but
of that only the floor need come from memory. At the large geometry of ``tools/bench_geometry.py``
nearly all cells have several runs; cell by cell is 36 times its floor, this 8 times.

How many runs there are is not known without waiting for the device, so there is room for one per
POINTS_PER_PARTIAL points; the second kernel sums the runs beyond that, which no camera rig has,
from their points.

Backward is two matrix products per block of runs, over the same gradient of their cells, with R
runs and H rows of one image column; a column is one program, so nothing is added twice:

    grad_features[h, c] = sum over r of weight[h, r] * grad[cell[r], c]
    grad_depth[h, r] = sum over c of features[h, c] * grad[cell[r], c]

A product with a masked weight is 0 * feature: a feature or gradient that is not finite spoils its
column's sums, also those whose points it is not among.
"""

# Offsets of elements are int64: N * H * W * C and G * C may pass 2**31. Points and cells do not.

# A checker sees neither launch options nor that constants are passed as plain numbers.
# pyright: reportCallIssue=false, reportArgumentType=false, reportIndexIssue=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _load_runs(run, last, by_column_ptr, row, D, HW, W):
    """Of a block of runs of a column: cells and places (R,), points (H, R) and which exist."""
    real = run < last
    entry = by_column_ptr + run.to(tl.int64) * 4
    first = tl.load(entry, mask=real, other=0)
    rows = tl.load(entry + 1, mask=real, other=0)
    cell = tl.load(entry + 2, mask=real, other=0)
    place = tl.load(entry + 3, mask=real, other=0)
    top = first % HW // W
    inside = (row[:, None] >= top[None, :]) & (row[:, None] < (top + rows)[None, :])
    return cell, place, first[None, :] + (row[:, None] - top[None, :]) * W, inside


@triton.jit
def run_kernel(
    depth_ptr,  # (N, D, H, W)
    features_ptr,  # (N, H, W, C)
    cell_first_ptr,  # (G + 1,)
    column_first_ptr,  # (N * W + 1,)
    by_column_ptr,  # (R, 4) first point, number of points, cell, place
    partial_ptr,  # (room, C) float32, sums of the runs of cells with several, in order of place
    pooled_ptr,  # (G, C), the cells with one run
    num_columns,
    room,
    D,
    H,
    W,
    C,
    COLUMNS: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_C: tl.constexpr,
    DOT_TYPE: tl.constexpr,
):
    part = tl.program_id(1)
    channel = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    in_range = channel < C
    low_column = tl.program_id(0) * COLUMNS
    for column in range(low_column, tl.minimum(low_column + COLUMNS, num_columns)):
        first = tl.load(column_first_ptr + column)
        count = tl.load(column_first_ptr + column + 1) - first
        share = tl.cdiv(count, PARTS)
        last = first + tl.minimum((part + 1) * share, count)
        for start in range(first + part * share, last, BLOCK_R):
            run = start + tl.arange(0, BLOCK_R)
            total = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
            cell = run
            place = run
            for low in range(0, H, BLOCK_H):
                row = low + tl.arange(0, BLOCK_H)
                cell, place, point, inside = _load_runs(run, last, by_column_ptr, row, D, H * W, W)
                weight = tl.load(depth_ptr + point, mask=inside, other=0.0)
                pixel = (column // W * H + row).to(tl.int64) * W + column % W
                feature = tl.load(
                    features_ptr + pixel[:, None] * C + channel[None, :],
                    mask=(row < H)[:, None] & in_range[None, :],
                    other=0.0,
                )
                weight = tl.trans(weight).to(DOT_TYPE)
                total += tl.dot(weight, feature.to(DOT_TYPE), input_precision="ieee")
            real = run < last
            begin = tl.load(cell_first_ptr + cell, mask=real, other=0)
            alone = tl.load(cell_first_ptr + cell + 1, mask=real, other=0) == begin + 1
            to_cell = pooled_ptr + cell.to(tl.int64)[:, None] * C + channel[None, :]
            tl.store(to_cell, total, mask=(real & alone)[:, None] & in_range[None, :])
            kept = real & (alone == 0) & (place < room)
            to_partial = partial_ptr + place.to(tl.int64)[:, None] * C + channel[None, :]
            tl.store(to_partial, total, mask=kept[:, None] & in_range[None, :])


@triton.jit
def cell_kernel(
    depth_ptr,  # (N, D, H, W)
    features_ptr,  # (N, H, W, C)
    cell_first_ptr,  # (G + 1,)
    by_cell_ptr,  # (R, 2) first point, number of points
    partial_ptr,  # (room, C) float32
    pooled_ptr,  # (G, C), all cells but those with one run
    num_cells,
    room,
    D,
    HW,
    W,
    C,
    BLOCK_G: tl.constexpr,
    BLOCK_C: tl.constexpr,
    UNROLL: tl.constexpr,
):
    cell = tl.program_id(0) * BLOCK_G + tl.arange(0, BLOCK_G)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    real, in_range = cell < num_cells, channel < C
    first = tl.load(cell_first_ptr + cell, mask=real, other=0)
    count = tl.load(cell_first_ptr + cell + 1, mask=real, other=0) - first
    alone = count == 1
    last = tl.where(alone, first, first + count)
    total = tl.zeros((BLOCK_G, BLOCK_C), tl.float32)
    for low in range(0, tl.max(tl.minimum(last, room) - first), UNROLL):
        for k in tl.static_range(UNROLL):  # several loads at once: cells by a camera have 25 runs
            place = first + low + k
            mask = (place < tl.minimum(last, room))[:, None] & in_range[None, :]
            run_sum = partial_ptr + place.to(tl.int64)[:, None] * C + channel[None, :]
            total += tl.load(run_sum, mask=mask, other=0.0)
    beyond = tl.maximum(first, room)
    for k in range(0, tl.max(last - beyond)):
        run = (beyond + k).to(tl.int64)
        point = tl.load(by_cell_ptr + run * 2, mask=run < last, other=0)
        rows = tl.load(by_cell_ptr + run * 2 + 1, mask=run < last, other=0)
        pixel = (point // (D * HW) * HW + point % HW).to(tl.int64)
        for row in range(0, tl.max(rows)):
            inside = row < rows
            weight = tl.load(depth_ptr + point + row * W, mask=inside, other=0.0).to(tl.float32)
            feature = tl.load(
                features_ptr + (pixel + row * W)[:, None] * C + channel[None, :],
                mask=inside[:, None] & in_range[None, :],
                other=0.0,
            )
            total += weight[:, None] * feature.to(tl.float32)
    to_cell = pooled_ptr + cell.to(tl.int64)[:, None] * C + channel[None, :]
    tl.store(to_cell, total, mask=(real & (alone == 0))[:, None] & in_range[None, :])


@triton.jit
def backward_kernel(
    grad_ptr,  # (G, C)
    depth_ptr,  # (N, D, H, W)
    features_ptr,  # (N, H, W, C)
    column_first_ptr,  # (N * W + 1,)
    by_column_ptr,  # (R, 4) first point, number of points, cell, place
    grad_depth_ptr,  # (blocks of C, N, D, H, W), zeroed: points outside the grid are in no run
    grad_features_ptr,  # (N, H, W, C)
    num_points,
    D,
    H,
    W,
    C,
    BLOCK_R: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_C: tl.constexpr,
    DOT_TYPE: tl.constexpr,
):
    column = tl.program_id(0)
    row = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    channel = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    in_range = channel < C
    pixel = (column // W * H + row).to(tl.int64) * W + column % W
    place = pixel[:, None] * C + channel[None, :]
    exists = (row < H)[:, None] & in_range[None, :]
    feature = tl.load(features_ptr + place, mask=exists, other=0.0).to(DOT_TYPE)
    grad_depth_ptr += tl.program_id(2).to(tl.int64) * num_points
    last = tl.load(column_first_ptr + column + 1)
    total = tl.zeros((BLOCK_H, BLOCK_C), tl.float32)
    for start in range(tl.load(column_first_ptr + column), last, BLOCK_R):
        run = start + tl.arange(0, BLOCK_R)
        cell, _, point, inside = _load_runs(run, last, by_column_ptr, row, D, H * W, W)
        weight = tl.load(depth_ptr + point, mask=inside, other=0.0)
        grad = tl.load(
            grad_ptr + cell.to(tl.int64)[:, None] * C + channel[None, :],
            mask=(run < last)[:, None] & in_range[None, :],
            other=0.0,
        ).to(DOT_TYPE)
        total += tl.dot(weight.to(DOT_TYPE), grad, input_precision="ieee")
        product = tl.dot(feature, tl.trans(grad), input_precision="ieee")
        tl.store(grad_depth_ptr + point, product, mask=inside)
    tl.store(grad_features_ptr + place, total, mask=exists)


# Counted, not tuned: see the top. (R: runs, H: image rows, G: cells.)
RUN_BLOCKS = {"COLUMNS": 4, "PARTS": 8, "BLOCK_R": 32, "BLOCK_H": 32, "num_stages": 1}
CELL_BLOCKS = {"BLOCK_G": 16, "UNROLL": 4, "num_stages": 1}
BACKWARD_BLOCKS = {"BLOCK_H": 32}
POINTS_PER_PARTIAL = 16  # BEVFusion's rig has 22 points for each run


def run_blocks(product: tl.dtype) -> dict[str, int]:
    """Block sizes of the runs' sums, for products in float32 (no tensor cores) or half of it."""
    return {**RUN_BLOCKS, "num_warps": 8 if product == tl.float32 else 4}


def backward_blocks(product: tl.dtype) -> dict[str, int]:
    """Block sizes of the gradients; in float32 more would spill registers."""
    if product == tl.float32:
        return {**BACKWARD_BLOCKS, "BLOCK_R": 16, "num_warps": 8, "num_stages": 1}
    return {**BACKWARD_BLOCKS, "BLOCK_R": 32, "num_warps": 4, "num_stages": 2}


def channel_block(num_channels: int) -> int:
    """The power of two that holds the channels, within bounds."""
    return min(max(triton.next_power_of_2(num_channels), 16), 128)


def dot_type(*tensors: Tensor) -> tl.dtype:
    """Products in half precision where all factors have it: each is exact in a float32 sum."""
    types = {tensor.dtype for tensor in tensors}
    if types == {torch.bfloat16}:
        return tl.bfloat16
    return tl.float16 if types == {torch.float16} else tl.float32


def pool_runs(
    depth: Tensor,
    features: Tensor,
    cell_first: Tensor,
    by_cell: Tensor,
    column_first: Tensor,
    by_column: Tensor,
) -> Tensor:
    """Sum depth times features per cell; the arguments are those of ``bev_pool`` and its plan."""
    _, D, H, W = depth.shape
    num_cells, num_columns, C = (
        cell_first.shape[0] - 1,
        column_first.shape[0] - 1,
        features.shape[3],
    )
    pooled = torch.empty(num_cells, C, dtype=features.dtype, device=features.device)
    if pooled.numel() == 0:
        return pooled
    depth, features = depth.contiguous(), features.contiguous()
    room = depth.numel() // POINTS_PER_PARTIAL
    partial = torch.empty(room, C, dtype=torch.float32, device=features.device)
    block, product = channel_block(C), dot_type(depth, features)
    channel_blocks = triton.cdiv(C, block)
    groups = triton.cdiv(num_columns, RUN_BLOCKS["COLUMNS"])
    with torch.cuda.device_of(features):  # Triton launches on the current device
        if depth.numel():
            run_kernel[groups, RUN_BLOCKS["PARTS"], channel_blocks](
                *(depth, features, cell_first, column_first, by_column, partial, pooled),
                *(num_columns, room, D, H, W, C),
                BLOCK_C=block,
                DOT_TYPE=product,
                **run_blocks(product),
            )
        cell_kernel[triton.cdiv(num_cells, CELL_BLOCKS["BLOCK_G"]), channel_blocks](
            *(depth, features, cell_first, by_cell, partial, pooled),
            *(num_cells, room, D, H * W, W, C),
            BLOCK_C=block,
            **CELL_BLOCKS,
        )
    return pooled


def pool_runs_backward(
    grad: Tensor, depth: Tensor, features: Tensor, column_first: Tensor, by_column: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of :func:`pool_runs` to depth and features."""
    _, D, H, W = depth.shape
    num_columns, C = column_first.shape[0] - 1, features.shape[-1]
    grad, depth, features = grad.contiguous(), depth.contiguous(), features.contiguous()
    grad_features = torch.empty_like(features)
    if depth.numel() == 0 or C == 0:
        return torch.zeros_like(depth), grad_features.zero_()
    block, product = channel_block(C), dot_type(grad, depth, features)
    channel_blocks = triton.cdiv(C, block)
    # Several blocks of channels each have a share of the sum.
    shares = depth.dtype if channel_blocks == 1 else torch.float32
    grad_depth = torch.zeros(channel_blocks, *depth.shape, dtype=shares, device=depth.device)
    grid = num_columns, triton.cdiv(H, BACKWARD_BLOCKS["BLOCK_H"]), channel_blocks
    with torch.cuda.device_of(features):
        backward_kernel[grid](
            *(grad, depth, features, column_first, by_column, grad_depth, grad_features),
            *(depth.numel(), D, H, W, C),
            BLOCK_C=block,
            DOT_TYPE=product,
            **backward_blocks(product),
        )
    return grad_depth.sum(0).to(depth.dtype) if channel_blocks > 1 else grad_depth[0], grad_features
