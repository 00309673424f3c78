"""Sparse convolution on the GPU: implicit matrix products over grouped rows, as Triton kernels.

A program owns ROWS outputs that have about the same neighbours (see ``triton_neighbors.py``) and a
block of output channels. It walks through the offsets that occur among them, gathers their input
rows, zeros where there is none, and multiplies by the weight of the offset: nothing is written but
the result, with bias, residual and ReLU done on the way. The gradient to the features is the same
product over the table by input, with each weight transposed. The gradient to the weights is, per
offset, a product over the rows, split into a number of sums that follows from shapes alone and
that are added in a fixed order: no atomics, so the result is the same on every run.

V input rows, U outputs, K kernel offsets, S slots. Block sizes follow from the number of channels
and are not tuned: no figure was measured on a GPU yet. To measure against, counted by
``tools/sparse_conv_cost.py``: the 21 convolutions of BEVFusion's voxel encoder are 51 GFLOP on
79,745 voxels and 88 on 105,127 (1.25 and 1.21 times that with the zeros in the blocks), 250 and 400
MB of memory in 2-byte values. By its data sheet an H200 needs 0.06 to 0.1 ms for either. Through
the second-level cache go 1.8 and 2.9 GB, gathered rows and, half of it, weights, which each block
reads again; and launches and the waits for four numbers of outputs will cost more than all this.
"""

# Offsets of elements are int64: V * C and K * S may pass 2**31. Rows and slots do not.

# A checker sees neither launch options nor that constants are passed as plain numbers.
# pyright: reportCallIssue=false, reportArgumentType=false, reportIndexIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .triton_neighbors import ROWS, popcount


@triton.jit
def conv_kernel(
    features_ptr,  # (V, C_in)
    weight_ptr,  # (K, C_in, C_out)
    slots_ptr,  # (1 + K, S) int32 output row, then input row under each offset
    masks_ptr,  # (S // ROWS, words) int32 offsets that occur in a block
    bias_ptr,  # (C_out,) or None
    residual_ptr,  # (U, C_out) or None
    out_ptr,  # (U, C_out)
    num_slots,
    C_in,
    C_out,
    num_words,
    RELU: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_IN: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    DOT_TYPE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    block = tl.program_id(0)
    slot = block * ROWS + tl.arange(0, ROWS)
    out_channel = tl.program_id(1) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    total = tl.zeros((ROWS, BLOCK_OUT), tl.float32)
    for low in range(0, C_in, BLOCK_IN):
        channel = low + tl.arange(0, BLOCK_IN)
        for word in range(num_words):
            left = tl.load(masks_ptr + block * num_words + word).to(tl.uint32, bitcast=True)
            # A count, not `while left`: the compiler overlaps loads with products in such a loop.
            for _ in range(popcount(left)):
                rest = left & (left - 1)
                offset = word * 32 + popcount((left ^ rest) - 1).to(tl.int64)
                left = rest
                source = tl.load(slots_ptr + (1 + offset) * num_slots + slot)
                gathered = tl.load(
                    features_ptr + source.to(tl.int64)[:, None] * C_in + channel[None, :],
                    mask=(source >= 0)[:, None] & (channel < C_in)[None, :],
                    other=0.0,
                )
                weight = tl.load(
                    weight_ptr + (offset * C_in + channel[:, None]) * C_out + out_channel[None, :],
                    mask=(channel < C_in)[:, None] & (out_channel < C_out)[None, :],
                    other=0.0,
                )
                total = tl.dot(
                    gathered.to(DOT_TYPE), weight.to(DOT_TYPE), total, input_precision=PRECISION
                )
    row = tl.load(slots_ptr + slot)
    in_range = out_channel < C_out
    if bias_ptr is not None:
        total += tl.load(bias_ptr + out_channel, mask=in_range, other=0.0).to(tl.float32)[None, :]
    place = row.to(tl.int64)[:, None] * C_out + out_channel[None, :]
    real = (row >= 0)[:, None] & in_range[None, :]
    if residual_ptr is not None:
        total += tl.load(residual_ptr + place, mask=real, other=0.0).to(tl.float32)
    if RELU:
        total = tl.where(total < 0, 0.0, total)  # not a maximum: NaN stays NaN, as in torch
    tl.store(out_ptr + place, total, mask=real)


@triton.jit
def weight_grad_kernel(
    features_ptr,  # (V, C_in)
    grad_ptr,  # (U, C_out)
    slots_ptr,  # (1 + K, S) int32
    blocks_ptr,  # (K, S // ROWS) int32 blocks in which an offset occurs, those first
    counts_ptr,  # (K,) int32 how many these are
    partial_ptr,  # (splits, K, C_in, C_out) float32
    num_slots,
    C_in,
    C_out,
    ROWS: tl.constexpr,
    BLOCK_IN: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    DOT_TYPE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    offset, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    column_blocks = tl.cdiv(C_out, BLOCK_OUT)
    channel = tl.program_id(2) // column_blocks * BLOCK_IN + tl.arange(0, BLOCK_IN)
    out_channel = tl.program_id(2) % column_blocks * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    count = tl.load(counts_ptr + offset)
    first = count * split // tl.num_programs(1)
    last = count * (split + 1) // tl.num_programs(1)
    total = tl.zeros((BLOCK_IN, BLOCK_OUT), tl.float32)
    for i in range(first, last):
        block = tl.load(blocks_ptr + offset * (num_slots // ROWS) + i)
        slot = block * ROWS + tl.arange(0, ROWS)
        source = tl.load(slots_ptr + (1 + offset) * num_slots + slot)
        row = tl.load(slots_ptr + slot)
        gathered = tl.load(
            features_ptr + source.to(tl.int64)[None, :] * C_in + channel[:, None],
            mask=(source >= 0)[None, :] & (channel < C_in)[:, None],
            other=0.0,
        )
        # Where there is no input, the factor above is zero; the row is not needed either.
        grad = tl.load(
            grad_ptr + row.to(tl.int64)[:, None] * C_out + out_channel[None, :],
            mask=(source >= 0)[:, None] & (out_channel < C_out)[None, :],
            other=0.0,
        )
        total = tl.dot(gathered.to(DOT_TYPE), grad.to(DOT_TYPE), total, input_precision=PRECISION)
    matrix = (split * tl.num_programs(0) + offset) * C_in
    place = partial_ptr + (matrix + channel[:, None]) * C_out + out_channel[None, :]
    tl.store(place, total, mask=(channel < C_in)[:, None] & (out_channel < C_out)[None, :])


# --- Launchers ------------------------------------------------------------------------------------

DOT_TYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
# Float32 products are made on the ordinary cores, an operand of each in registers.
MOST_CHANNELS = {torch.float32: (32, 64), torch.float16: (64, 128), torch.bfloat16: (64, 128)}
MOST_GRAD_CHANNELS = {torch.float32: 64, torch.float16: 128, torch.bfloat16: 128}
# Loads are under way for two offsets ahead: first their rows, then what lies there. With fewer
# stages it is one. An AMD GPU has room in shared memory for no more than this.
STAGES, AMD_STAGES = 5, 3
BLOCKS_PER_SPLIT = 16  # at least, of a sum over the rows for the gradient to the weights
MOST_SPLITS = 32


def channel_block(num_channels: int, most: int) -> int:
    """The power of two that holds the channels, no less than a tensor core takes."""
    return min(max(triton.next_power_of_2(num_channels), 16), most)


def conv_blocks(C_in: int, C_out: int, dtype: torch.dtype) -> dict[str, int]:
    """Block sizes for numbers of channels; not tuned yet."""
    most_in, most_out = MOST_CHANNELS[dtype]
    return {
        "ROWS": ROWS,
        "BLOCK_IN": channel_block(C_in, most_in),
        "BLOCK_OUT": channel_block(C_out, most_out),
        "num_stages": AMD_STAGES if torch.version.hip else STAGES,
    }


def weight_grad_blocks(C_in: int, C_out: int, dtype: torch.dtype) -> dict[str, int]:
    """The same for the gradient to the weights."""
    most = MOST_GRAD_CHANNELS[dtype]
    block_in, block_out = channel_block(C_in, most), channel_block(C_out, most)
    # With 4, the sums of 128 x 128 channels would take most registers of each thread.
    num_warps = 8 if block_in * block_out > 64 * 64 else 4
    return {"ROWS": ROWS, "BLOCK_IN": block_in, "BLOCK_OUT": block_out, "num_warps": num_warps}


def dot_precision(dtype: torch.dtype) -> str:
    """TF32 where the products are of float32 and torch's own may use it, else the full format."""
    # The new name of allow_tf32: reading the old one fails once somebody has set the new one.
    allowed = torch.backends.cuda.matmul.fp32_precision == "tf32" and torch.version.hip is None
    return "tf32" if allowed and dtype == torch.float32 else "ieee"


def _check(features: Tensor, slots: Tensor, *others: Tensor | None) -> None:
    if features.dtype not in DOT_TYPES:
        raise ValueError(f"expected float32, float16 or bfloat16 on a GPU, not {features.dtype}")
    devices = {str(t.device) for t in (features, slots, *others) if t is not None}
    if len(devices) > 1:
        raise ValueError(f"features, weight and table are on {sorted(devices)}; move them together")


def convolve(
    features: Tensor,
    weight: Tensor,
    slots: Tensor,
    masks: Tensor,
    num_outputs: int,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """Sparse convolution over grouped rows.

    Args:
        features: (V, C_in) float32, float16 or bfloat16.
        weight: (K, C_in, C_out); the gradient to the features takes it with its channels swapped.
        slots, masks: of ``group_rows``.
        num_outputs: U.
        bias: (C_out,) added to every row.
        residual: (U, C_out) added to the result.
        relu: whether negative results become zero.

    Returns:
        (U, C_out) in the dtype of ``features``; sums are in float32.

    Raises:
        ValueError: for another dtype, or if not all is on one device.
    """
    _check(features, slots, weight, bias, residual)
    _, C_in, C_out = weight.shape
    out = torch.empty(num_outputs, C_out, dtype=features.dtype, device=features.device)
    if out.numel() == 0:
        return out
    weight = weight.to(features.dtype).contiguous()
    blocks = conv_blocks(C_in, C_out, features.dtype)
    with torch.cuda.device_of(features):  # Triton launches on the current device
        conv_kernel[masks.shape[0], triton.cdiv(C_out, blocks["BLOCK_OUT"])](
            *(features.contiguous(), weight, slots, masks),
            bias if bias is None else bias.contiguous(),
            residual if residual is None else residual.contiguous(),
            *(out, slots.shape[1], C_in, C_out, masks.shape[1]),
            RELU=relu,
            DOT_TYPE=DOT_TYPES[features.dtype],
            PRECISION=dot_precision(features.dtype),
            **blocks,
        )
    return out


def weight_grad(features: Tensor, grad: Tensor, slots: Tensor, masks: Tensor) -> Tensor:
    """Gradient to the weights of a sparse convolution.

    Args:
        features: (V, C_in) float32, float16 or bfloat16.
        grad: (U, C_out), the gradient to the result.
        slots, masks: of ``group_rows``.

    Returns:
        (K, C_in, C_out) float32.

    Raises:
        ValueError: for another dtype, or if not all is on one device.
    """
    _check(features, slots, grad)
    K, C_in, C_out = slots.shape[0] - 1, features.shape[1], grad.shape[1]
    splits = min(max(masks.shape[0] // BLOCKS_PER_SPLIT, 1), MOST_SPLITS)
    partial = torch.empty(splits, K, C_in, C_out, dtype=torch.float32, device=features.device)
    if partial.numel() == 0 or masks.shape[0] == 0:
        return partial.zero_().sum(0)
    offset = torch.arange(K, device=masks.device)
    occurs = (masks[:, offset // 32] >> (offset % 32)) & 1
    occurs = occurs.t().contiguous()  # (K, S // ROWS); the kernel walks along its rows
    listed = occurs.sort(dim=1, descending=True, stable=True).indices.int()
    blocks = weight_grad_blocks(C_in, C_out, features.dtype)
    tiles = triton.cdiv(C_in, blocks["BLOCK_IN"]) * triton.cdiv(C_out, blocks["BLOCK_OUT"])
    with torch.cuda.device_of(features):
        weight_grad_kernel[K, splits, tiles](
            *(features.contiguous(), grad.to(features.dtype).contiguous(), slots, listed),
            *(occurs.sum(1, dtype=torch.int32), partial, slots.shape[1], C_in, C_out),
            DOT_TYPE=DOT_TYPES[features.dtype],
            PRECISION=dot_precision(features.dtype),
            **blocks,
        )
    return partial.sum(0)
