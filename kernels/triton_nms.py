"""Non-maximum suppression on the GPU: who would suppress whom as bits, then one sweep over them.

Boxes come sorted by sample, label and score, so that a box may be suppressed by earlier ones only.
Block sizes are not tuned: no figure was measured on a GPU yet.
"""

# A checker sees neither launch options nor that constants are passed as plain numbers.
# pyright: reportCallIssue=false, reportArgumentType=false, reportIndexIssue=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .triton_boxes import intersection

WORD = 64  # boxes in a word of the bit table
MASK = {"ROWS": 4}
# The table of more boxes would take more than 512 MB.
MOST_BOXES = 1 << 16


@triton.jit
def _bits(suppressed, row, column, group_i, group_j):
    """Words (ROWS,) of a table of who suppresses whom (ROWS, 64)."""
    later = (column[None, :] > row[:, None]) & (group_i[:, None] == group_j[None, :])
    one = tl.full((1, 64), 1, tl.int64) << tl.arange(0, 64)[None, :]
    return tl.sum(tl.where(suppressed & later, one, 0), 1)


@triton.jit
def iou_bits_kernel(
    boxes_ptr,  # (9, M)
    group_ptr,  # (M,) int32, not falling
    table_ptr,  # (M, W) int64: bit j of word w is set where the row suppresses box 64 w + j
    threshold_ptr,  # (1,)
    M,
    W,
    ROWS: tl.constexpr,
):
    first, word = tl.program_id(0) * ROWS, tl.program_id(1)
    row, column = first + tl.arange(0, ROWS), word * 64 + tl.arange(0, 64)
    real_i, real_j = row < M, column < M
    group_i = tl.load(group_ptr + row, mask=real_i, other=-1)
    group_j = tl.load(group_ptr + column, mask=real_j, other=-2)
    bits = tl.zeros((ROWS,), tl.int64)
    # Nothing to do where all columns are earlier or of later groups.
    if (tl.max(column) > first) & (tl.max(group_i) >= tl.load(group_ptr + word * 64)):
        box, other = boxes_ptr + row, boxes_ptr + column
        x = tl.load(box, mask=real_i)[:, None] - tl.load(other, mask=real_j)[None, :]
        y = tl.load(box + M, mask=real_i)[:, None] - tl.load(other + M, mask=real_j)[None, :]
        length = tl.load(box + 3 * M, mask=real_i)[:, None]
        width = tl.load(box + 4 * M, mask=real_i)[:, None]
        cos_i = tl.load(box + 6 * M, mask=real_i)[:, None]
        sin_i = tl.load(box + 7 * M, mask=real_i)[:, None]
        a = tl.load(other + 3 * M, mask=real_j)[None, :]
        b = tl.load(other + 4 * M, mask=real_j)[None, :]
        cos_j = tl.load(other + 6 * M, mask=real_j)[None, :]
        sin_j = tl.load(other + 7 * M, mask=real_j)[None, :]
        reach = tl.load(box + 8 * M, mask=real_i)[:, None]
        reach += tl.load(other + 8 * M, mask=real_j)[None, :]
        shared = intersection(x, y, length, width, cos_i, sin_i, a, b, cos_j, sin_j, reach)
        union = 4 * length * width + 4 * a * b - shared
        some = union > 0
        iou = tl.where(some, shared / tl.where(some, union, 1.0), 0.0)
        bits = _bits(iou > tl.load(threshold_ptr), row, column, group_i, group_j)
    tl.store(table_ptr + row.to(tl.int64) * W + word, bits, mask=real_i)


@triton.jit
def circle_bits_kernel(
    discs_ptr,  # (3, M) x, y, radius
    group_ptr,  # (M,) int32, not falling
    table_ptr,  # (M, W) int64
    M,
    W,
    ROWS: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    word = tl.program_id(1)
    column = word * 64 + tl.arange(0, 64)
    real_i, real_j = row < M, column < M
    group_i = tl.load(group_ptr + row, mask=real_i, other=-1)
    group_j = tl.load(group_ptr + column, mask=real_j, other=-2)
    disc, other = discs_ptr + row, discs_ptr + column
    x = tl.load(disc, mask=real_i)[:, None] - tl.load(other, mask=real_j)[None, :]
    y = tl.load(disc + M, mask=real_i)[:, None] - tl.load(other + M, mask=real_j)[None, :]
    limit = tl.load(disc + 2 * M, mask=real_i)[:, None]
    limit = (limit + tl.load(other + 2 * M, mask=real_j)[None, :]) * 0.5
    bits = _bits(x * x + y * y <= limit * limit, row, column, group_i, group_j)
    tl.store(table_ptr + row.to(tl.int64) * W + word, bits, mask=real_i)


@triton.jit
def _or(a, b):
    return a | b


@triton.jit
def sweep_kernel(
    table_ptr,  # (M, W) int64
    keep_ptr,  # (M,) bool
    M,
    W,
    BLOCK_W: tl.constexpr,  # at least W
    ROWS: tl.constexpr,  # of a word that are read at once
):
    bit, words = tl.arange(0, 64), tl.arange(0, BLOCK_W)
    removed = tl.zeros((BLOCK_W,), tl.int64)
    for word in range(W):
        row = word * 64 + bit
        own = tl.load(table_ptr + row.to(tl.int64) * W + word, mask=row < M, other=0)
        # Who stays of these 64: each round settles at least the next in order; chains are short.
        gone = (tl.sum(tl.where(words == word, removed, 0)) >> bit) & 1
        start = (row < M) & (gone == 0)
        keep = start.to(tl.int64)
        changed = tl.sum(keep)
        while changed > 0:
            by_others = tl.reduce(tl.where(keep > 0, own, 0), 0, _or)
            settled = (start & (((by_others >> bit) & 1) == 0)).to(tl.int64)
            changed = tl.sum(tl.abs(settled - keep))
            keep = settled
        tl.store(keep_ptr + row, keep > 0, mask=row < M)
        kept = tl.sum(keep << bit)
        for low in range(0, 64, ROWS):
            part = low + tl.arange(0, ROWS)
            mask = (((kept >> part) & 1) > 0)[:, None] & ((words > word) & (words < W))[None, :]
            place = table_ptr + (word * 64 + part).to(tl.int64)[:, None] * W + words[None, :]
            removed |= tl.reduce(tl.load(place, mask=mask, other=0), 0, _or)


def keep_by_iou(columns: list[Tensor], group: Tensor, threshold: float) -> Tensor:
    """Which of M sorted boxes stay: (M,) bool; boxes as columns of ``box_iou.columns``."""
    boxes, M = torch.stack(columns), len(group)
    bits, grid = _table(group)
    limit = boxes.new_full((1,), threshold)  # a number would be passed as float32
    if M:
        with torch.cuda.device_of(group):  # Triton launches on the current device
            iou_bits_kernel[grid](boxes, group, bits, limit, M, bits.shape[1], **MASK)
    return _sweep(bits)


def keep_by_distance(discs: Tensor, group: Tensor) -> Tensor:
    """Which of M sorted discs (M, 3: x, y, radius) stay: (M,) bool."""
    bits, grid = _table(group)
    if len(group):
        args = discs.T.contiguous(), group, bits, *bits.shape
        with torch.cuda.device_of(group):
            circle_bits_kernel[grid](*args, **MASK)
    return _sweep(bits)


def _table(group: Tensor) -> tuple[Tensor, tuple[int, int]]:
    M = len(group)
    if M > MOST_BOXES:
        raise ValueError(
            f"{M} boxes are more than {MOST_BOXES}, as many as a GPU compares at once; "
            "leave those with the lowest scores out first"
        )
    words = triton.cdiv(M, WORD)
    bits = torch.empty(M, words, dtype=torch.int64, device=group.device)
    return bits, (triton.cdiv(M, MASK["ROWS"]), words)


def sweep_blocks(words: int) -> dict[str, int]:
    """Block sizes for a table of that many words a row, at most 1024 words at a time."""
    block = max(triton.next_power_of_2(words), 16)
    return {"BLOCK_W": block, "ROWS": min(64, max(1024 // block, 1))}


def _sweep(bits: Tensor) -> Tensor:
    M, words = bits.shape
    keep = torch.empty(M, dtype=torch.bool, device=bits.device)
    if M:
        with torch.cuda.device_of(bits):
            sweep_kernel[(1,)](bits, keep, M, words, **sweep_blocks(words), num_warps=4)
    return keep
