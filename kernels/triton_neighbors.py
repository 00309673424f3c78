"""Neighbour tables on the GPU: which input row lies under each kernel offset of each output.

A submanifold convolution looks its neighbours up in a hash table from cell to row: open addressing,
linear probing, at most half full. Cells are unique, so that every order of insertion leads to the
same answers, and its size follows from V: the host never waits.

A strided convolution marks the cells that some input reaches in a bitmap of the output grid, one
bit a cell, and counts set bits: the number of marks before a cell is the row of its output, which
puts the outputs in ascending order (batch, z, y, x) without a sort. With the running count that
is 2 bits a cell, 2.7 MB for the largest of BEVFusion's (21 x 720 x 720): it stays in the cache,
where sorting the 8 candidates of each of 80,000 inputs makes several passes over 5 MB. The host
waits once, for the number of outputs.

A convolution then takes its outputs in blocks of ROWS slots and skips the offsets that
nobody in the block has. So that this is most of them, outputs are sorted by which neighbours they
have: as a Gray code, where what is close in the order differs in few digits, with the offsets far
from the middle, the rare ones in LiDAR, as the first digits; and descending, so that the blocks
with most work start first. Rows multiplied per real pair, counted on a CPU, for the submanifold
levels of BEVFusion's encoder on a frame of 79,745 voxels: 3.5, 1.8, 1.6 and 1.5 in input order;
1.8, 1.3, 1.2 and 1.2 sorted by mask; 1.5, 1.2, 1.2 and 1.2 sorted as here.

V input and U output voxels; kernel offsets count in C order of (kz, ky, kx), K in all. Block sizes
are not tuned: no figure was measured on a GPU yet.
"""

# A checker sees neither launch options nor that constants are passed as plain numbers.
# pyright: reportCallIssue=false, reportArgumentType=false, reportIndexIssue=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

EMPTY = tl.constexpr(-1)  # a place of the hash table that no key has taken
NEVER = tl.constexpr(-2)  # what no place ever holds
MULTIPLIER = tl.constexpr(0x1E3779B97F4A7C15)  # odd, near 2**61 * golden ratio: Fibonacci hashing

Numbers = Sequence[int]


@triton.jit
def popcount(word):
    """Number of set bits of uint32; without libdevice, which the interpreter does not have."""
    word = word - ((word >> 1) & 0x55555555)
    word = (word & 0x33333333) + ((word >> 2) & 0x33333333)
    word = (word + (word >> 4)) & 0x0F0F0F0F
    word = word + (word >> 8)
    return ((word + (word >> 16)) & 0x3F).to(tl.int32)


@triton.jit
def _first_place(key, capacity):
    # Bits from 32 up hang on all lower bits of the key, so that neighbours are spread.
    return ((key * MULTIPLIER) >> 32) & (capacity - 1)


@triton.jit
def _load_voxels(coordinates_ptr, voxel, num_voxels):
    place, real = coordinates_ptr + voxel.to(tl.int64) * 4, voxel < num_voxels
    batch = tl.load(place, mask=real, other=0)
    z = tl.load(place + 1, mask=real, other=0)
    y = tl.load(place + 2, mask=real, other=0)
    x = tl.load(place + 3, mask=real, other=0)
    return batch, z, y, x


# --- Submanifold ----------------------------------------------------------------------------------


@triton.jit
def insert_kernel(
    coordinates_ptr,  # (V, 4) int32
    keys_ptr,  # (capacity,) int64, EMPTY
    values_ptr,  # (capacity,) int32
    num_voxels,
    Z,
    Y,
    X,
    capacity,  # a power of two
    BLOCK_V: tl.constexpr,
):
    voxel = tl.program_id(0) * BLOCK_V + tl.arange(0, BLOCK_V)
    batch, z, y, x = _load_voxels(coordinates_ptr, voxel, num_voxels)
    key = ((batch.to(tl.int64) * Z + z) * Y + y) * X + x
    place = _first_place(key, capacity)
    pending = voxel < num_voxels
    while tl.max(pending.to(tl.int32), axis=0) > 0:
        # A compare-and-swap knows no mask: lanes that are done expect what is never there.
        expected = tl.where(pending, EMPTY, NEVER).to(tl.int64)
        found = tl.atomic_cas(keys_ptr + place, expected, key, sem="relaxed")
        tl.store(values_ptr + place, voxel, mask=pending & (found == EMPTY))
        pending = pending & (found != EMPTY)
        place = (place + 1) & (capacity - 1)


@triton.jit
def lookup_kernel(
    coordinates_ptr,  # (V, 4) int32
    keys_ptr,  # (capacity,) int64
    values_ptr,  # (capacity,) int32
    rows_ptr,  # (V, K) int32
    num_voxels,
    Z,
    Y,
    X,
    KZ,
    KY,
    KX,
    DZ,
    DY,
    DX,
    capacity,
    BLOCK_V: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    voxel = tl.program_id(0) * BLOCK_V + tl.arange(0, BLOCK_V)
    offset = tl.arange(0, BLOCK_K)
    real = (voxel < num_voxels)[:, None] & (offset < KZ * KY * KX)[None, :]
    batch, z, y, x = _load_voxels(coordinates_ptr, voxel, num_voxels)
    z = z[:, None] + ((offset // (KY * KX) - KZ // 2) * DZ)[None, :]
    y = y[:, None] + ((offset // KX % KY - KY // 2) * DY)[None, :]
    x = x[:, None] + ((offset % KX - KX // 2) * DX)[None, :]
    pending = real & (z >= 0) & (z < Z) & (y >= 0) & (y < Y) & (x >= 0) & (x < X)
    key = ((batch.to(tl.int64)[:, None] * Z + z) * Y + y) * X + x
    place = _first_place(key, capacity)
    hit = tl.full((BLOCK_V, BLOCK_K), -1, tl.int64)
    while tl.max(pending.to(tl.int32)) > 0:
        found = tl.load(keys_ptr + place, mask=pending, other=EMPTY)
        hit = tl.where(pending & (found == key), place, hit)
        pending = pending & (found != key) & (found != EMPTY)
        place = (place + 1) & (capacity - 1)
    row = tl.load(values_ptr + hit, mask=hit >= 0, other=-1)
    place = rows_ptr + voxel.to(tl.int64)[:, None] * (KZ * KY * KX) + offset[None, :]
    tl.store(place, row, mask=real)


# --- Strided --------------------------------------------------------------------------------------


@triton.jit
def _along_axis(cell, offset, padding, dilation, stride, size):
    """Output index that reads input ``cell`` at ``offset`` on one axis, and whether it exists."""
    position = cell[:, None] + (padding - offset * dilation)[None, :]
    index = position // stride
    return index, (position >= 0) & (position % stride == 0) & (index < size)


@triton.jit
def _outputs_of(
    coordinates_ptr,
    voxel,
    offset,
    num_voxels,
    Z,
    Y,
    X,
    KZ,
    KY,
    KX,
    SZ,
    SY,
    SX,
    PZ,
    PY,
    PX,
    DZ,
    DY,
    DX,
):
    """Output coordinates (V, K) that each voxel serves at each offset, and whether they exist."""
    batch, z, y, x = _load_voxels(coordinates_ptr, voxel, num_voxels)
    z, z_exists = _along_axis(z, offset // (KY * KX), PZ, DZ, SZ, Z)
    y, y_exists = _along_axis(y, offset // KX % KY, PY, DY, SY, Y)
    x, x_exists = _along_axis(x, offset % KX, PX, DX, SX, X)
    real = (voxel < num_voxels)[:, None] & (offset < KZ * KY * KX)[None, :]
    return batch[:, None] + tl.zeros_like(z), z, y, x, real & z_exists & y_exists & x_exists


@triton.jit
def mark_kernel(
    coordinates_ptr,  # (V, 4) int32
    bits_ptr,  # (words,) int32, a bit for every cell of the output grid, zeroed
    num_voxels,
    Z,  # of the output, as everywhere below
    Y,
    X,
    KZ,
    KY,
    KX,
    SZ,
    SY,
    SX,
    PZ,
    PY,
    PX,
    DZ,
    DY,
    DX,
    BLOCK_V: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    voxel = tl.program_id(0) * BLOCK_V + tl.arange(0, BLOCK_V)
    batch, z, y, x, exists = _outputs_of(
        *(coordinates_ptr, voxel, tl.arange(0, BLOCK_K), num_voxels, Z, Y, X, KZ, KY, KX),
        *(SZ, SY, SX, PZ, PY, PX, DZ, DY, DX),
    )
    cell = ((batch.to(tl.int64) * Z + z) * Y + y) * X + x
    bit = tl.full(cell.shape, 1, tl.int32) << (cell & 31).to(tl.int32)
    tl.atomic_or(bits_ptr + (cell >> 5), bit, mask=exists, sem="relaxed")


@triton.jit
def count_kernel(bits_ptr, counts_ptr, num_words, BLOCK: tl.constexpr):  # both (words,) int32
    word = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    bits = tl.load(bits_ptr + word, mask=word < num_words, other=0)
    tl.store(counts_ptr + word, popcount(bits.to(tl.uint32, bitcast=True)), mask=word < num_words)


@triton.jit
def link_kernel(
    coordinates_ptr,  # (V, 4) int32
    bits_ptr,  # (words,) int32
    upto_ptr,  # (words,) int32, marks in this word and those before it
    outputs_ptr,  # (U, 4) int32
    rows_ptr,  # (U, K) int32, -1
    num_voxels,
    Z,
    Y,
    X,
    KZ,
    KY,
    KX,
    SZ,
    SY,
    SX,
    PZ,
    PY,
    PX,
    DZ,
    DY,
    DX,
    BLOCK_V: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    voxel, offset = tl.program_id(0) * BLOCK_V + tl.arange(0, BLOCK_V), tl.arange(0, BLOCK_K)
    batch, z, y, x, exists = _outputs_of(
        *(coordinates_ptr, voxel, offset, num_voxels, Z, Y, X, KZ, KY, KX),
        *(SZ, SY, SX, PZ, PY, PX, DZ, DY, DX),
    )
    cell = ((batch.to(tl.int64) * Z + z) * Y + y) * X + x
    bits = tl.load(bits_ptr + (cell >> 5), mask=exists, other=0).to(tl.uint32, bitcast=True)
    upto = tl.load(upto_ptr + (cell >> 5), mask=exists, other=0)
    # Marks before this one: those up to its word, less itself and what follows it there.
    row = upto - popcount(bits >> (cell & 31).to(tl.uint32))
    source = voxel[:, None] + tl.zeros_like(row)
    # One input lies under an offset of an output: no two lanes write to the same place.
    place = rows_ptr + row.to(tl.int64) * (KZ * KY * KX) + offset[None, :]
    tl.store(place, source, mask=exists)
    # Here many do, all of them the same value.
    place = outputs_ptr + row.to(tl.int64) * 4
    tl.store(place, batch, mask=exists)
    tl.store(place + 1, z, mask=exists)
    tl.store(place + 2, y, mask=exists)
    tl.store(place + 3, x, mask=exists)


@triton.jit
def invert_kernel(
    rows_ptr,  # (U, K) int32
    by_input_ptr,  # (V, K) int32, -1
    num_pairs,  # U * K
    K,
    BLOCK: tl.constexpr,
):
    pair = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    row = tl.load(rows_ptr + pair, mask=pair < num_pairs, other=-1)
    # An input serves one output at each offset: no two lanes write to the same place.
    place = by_input_ptr + row.to(tl.int64) * K + pair % K
    tl.store(place, (pair // K).to(tl.int32), mask=row >= 0)


# --- Grouping -------------------------------------------------------------------------------------


@triton.jit
def pattern_kernel(
    rows_ptr,  # (U, K) int32
    pattern_ptr,  # (U,) int32, the key to sort by
    num_rows,
    K,
    BLOCK_U: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    row, offset = tl.program_id(0) * BLOCK_U + tl.arange(0, BLOCK_U), tl.arange(0, BLOCK_K)
    place = rows_ptr + row.to(tl.int64)[:, None] * K + offset[None, :]
    real = (row < num_rows)[:, None] & (offset < K)[None, :]
    exists = tl.load(place, mask=real, other=-1) >= 0
    middle = (K - 1) // 2
    digit = tl.where(offset > middle, 2 * (offset - middle) - 1, 2 * (middle - offset))
    # With more offsets than digits some share one; the order is no more than a hint.
    code = tl.xor_sum(exists.to(tl.int32) << (digit % 31)[None, :], axis=1)
    for shift in tl.static_range(5):  # the rank of a Gray code: each digit plus all before it
        code = code ^ (code >> (1 << shift))
    tl.store(pattern_ptr + row, code, mask=row < num_rows)


@triton.jit
def arrange_kernel(
    rows_ptr,  # (U, K) int32
    sorted_ptr,  # (U,) int64 outputs in order of their patterns
    slots_ptr,  # (1 + K, S) int32
    masks_ptr,  # (S // ROWS, words) int32
    num_rows,
    num_slots,
    K,
    ROWS: tl.constexpr,
):
    block = tl.program_id(0)
    slot = block * ROWS + tl.arange(0, ROWS)
    row = tl.load(sorted_ptr + slot, mask=slot < num_rows, other=-1)
    tl.store(slots_ptr + slot, row.to(tl.int32))
    digit = tl.arange(0, 32)
    for low in range(0, K, 32):
        offset = low + digit
        source = tl.load(
            rows_ptr + row[:, None] * K + offset[None, :],
            mask=(row >= 0)[:, None] & (offset < K)[None, :],
            other=-1,
        )
        place = slots_ptr + (1 + offset).to(tl.int64)[None, :] * num_slots + slot[:, None]
        tl.store(place, source, mask=(offset < K)[None, :] & (slot >= 0)[:, None])
        occurs = tl.max((source >= 0).to(tl.int32), axis=0)
        mask = tl.xor_sum(occurs << digit, axis=0)
        tl.store(masks_ptr + block * tl.cdiv(K, 32) + low // 32, mask)


# --- Launchers ------------------------------------------------------------------------------------

ROWS = 64  # outputs of a block; with 128, up to a tenth more is multiplied
INSERT_BLOCK = 256  # a lane for each of 4 x 64 threads: none does a compare-and-swap twice
FLAT_BLOCK = 1024


def blocks_of(num_offsets: int) -> dict[str, int]:
    """Block sizes for a number of kernel offsets, 256 pairs at a time; not tuned yet."""
    block = triton.next_power_of_2(num_offsets)
    return {"BLOCK_V": max(256 // block, 1), "BLOCK_K": block}


def pattern_blocks(num_offsets: int) -> dict[str, int]:
    """The same for the patterns, 1,024 pairs at a time."""
    block = triton.next_power_of_2(num_offsets)
    return {"BLOCK_U": max(1024 // block, 1), "BLOCK_K": block}


def submanifold_rows(
    coordinates: Tensor,
    shape: Numbers,
    kernel: Numbers,
    dilation: Numbers,
    capacity: int | None = None,
) -> Tensor:
    """Neighbour table of a submanifold convolution.

    Args:
        coordinates: (V, 4) int32 batch, z, y, x; unique.
        shape: Z, Y, X of the grid.
        kernel: odd size on each axis.
        dilation: on each axis.
        capacity: places of the hash table, a power of two above V; 2 to 4 times V by default.

    Returns:
        (V, K) int32, the input row under each offset, -1 where there is none.
    """
    V, K = coordinates.shape[0], math.prod(kernel)
    device, coordinates = coordinates.device, coordinates.contiguous()
    rows = torch.empty(V, K, dtype=torch.int32, device=device)
    if V == 0:
        return rows
    capacity = capacity or triton.next_power_of_2(2 * V)
    keys = torch.full((capacity,), EMPTY.value, dtype=torch.int64, device=device)
    values = torch.empty(capacity, dtype=torch.int32, device=device)
    blocks = blocks_of(K)
    with torch.cuda.device_of(coordinates):  # Triton launches on the current device
        insert_kernel[(triton.cdiv(V, INSERT_BLOCK),)](
            coordinates, keys, values, V, *shape, capacity, BLOCK_V=INSERT_BLOCK
        )
        lookup_kernel[(triton.cdiv(V, blocks["BLOCK_V"]),)](
            coordinates, keys, values, rows, V, *shape, *kernel, *dilation, capacity, **blocks
        )
    return rows


def strided_rows(
    coordinates: Tensor,
    out_shape: Numbers,
    batch_size: int,
    kernel: Numbers,
    stride: Numbers,
    padding: Numbers,
    dilation: Numbers,
) -> tuple[Tensor, Tensor]:
    """Outputs and neighbour table of a strided convolution.

    Args:
        coordinates: (V, 4) int32 batch, z, y, x; unique.
        out_shape: Z, Y, X of the output grid.
        batch_size: number of samples.
        kernel, stride, padding, dilation: on each axis.

    Returns:
        Coordinates (U, 4) of the outputs in ascending order, and the input row under each offset
        (U, K), -1 where there is none; int32.
    """
    V, K = coordinates.shape[0], math.prod(kernel)
    device, coordinates = coordinates.device, coordinates.contiguous()
    num_words = triton.cdiv(batch_size * math.prod(out_shape), 32)
    if V == 0 or num_words == 0:
        return coordinates.new_empty(0, 4), coordinates.new_empty(0, K)
    bits = torch.zeros(num_words, dtype=torch.int32, device=device)
    counts = torch.empty_like(bits)
    geometry = V, *out_shape, *kernel, *stride, *padding, *dilation
    blocks = blocks_of(K)
    programs = (triton.cdiv(V, blocks["BLOCK_V"]),)
    with torch.cuda.device_of(coordinates):
        mark_kernel[programs](coordinates, bits, *geometry, **blocks)
        count_kernel[(triton.cdiv(num_words, FLAT_BLOCK),)](
            bits, counts, num_words, BLOCK=FLAT_BLOCK
        )
        upto = counts.cumsum(0, dtype=torch.int32)
        U = int(upto[-1])  # the host waits here
        outputs = torch.empty(U, 4, dtype=torch.int32, device=device)
        rows = torch.full((U, K), -1, dtype=torch.int32, device=device)
        link_kernel[programs](coordinates, bits, upto, outputs, rows, *geometry, **blocks)
    return outputs, rows


def invert_rows(rows: Tensor, num_inputs: int) -> Tensor:
    """(V, K) int32 output row that an input serves at every offset, -1 for none, of (U, K) rows."""
    K = rows.shape[1]
    by_input = torch.full((num_inputs, K), -1, dtype=torch.int32, device=rows.device)
    if rows.numel():
        with torch.cuda.device_of(rows):
            invert_kernel[(triton.cdiv(rows.numel(), FLAT_BLOCK),)](
                rows.contiguous(), by_input, rows.numel(), K, BLOCK=FLAT_BLOCK
            )
    return by_input


def group_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs in order of which neighbours they have.

    Args:
        rows: (U, K) int32, the input row under each offset, -1 where there is none.

    Returns:
        Slots (1 + K, S) int32, S being U rounded up to whole blocks of ROWS: the output row,
        and under it the input row at each offset, -1 where there is none. Masks (blocks, words)
        int32, ``words`` being K / 32 rounded up: bit k says whether offset k occurs in the block.
    """
    U, K = rows.shape
    num_slots, num_words = triton.cdiv(U, ROWS) * ROWS, triton.cdiv(K, 32)
    slots = rows.new_empty(1 + K, num_slots)
    masks = rows.new_empty(num_slots // ROWS, num_words)
    if U == 0:
        return slots, masks
    rows, blocks = rows.contiguous(), pattern_blocks(K)
    pattern = rows.new_empty(U)
    with torch.cuda.device_of(rows):
        programs = (triton.cdiv(U, blocks["BLOCK_U"]),)
        pattern_kernel[programs](rows, pattern, U, K, **blocks)
        order = pattern.sort(descending=True, stable=True).indices  # stable: same bits every time
        arrange_kernel[(num_slots // ROWS,)](rows, order, slots, masks, U, num_slots, K, ROWS=ROWS)
    return slots, masks
