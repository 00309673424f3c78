"""Neighbour tables of sparse convolutions on the CPU, on numpy arrays, without torch.

Cells are looked up in a bitmap of the grid: one bit per cell, and before every word the number of
cells so far, so that a cell's number in ascending order is a count of bits. A cell that is empty,
as most neighbours are, costs one look at one bit.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .numba_voxelize import _ones
from .threads import compiled, in_parallel

Array = NDArray

# 1 GB of address space, of which only the pages near voxels are ever used.
MOST_CELLS = 1 << 33


def submanifold_rows(
    coordinates: Array,
    shape: Sequence[int],
    batch_size: int,
    kernel: Sequence[int],
    dilation: Sequence[int],
    num_threads: int | None = None,
) -> Array:
    """Input row under every offset of a kernel that is centred on every voxel.

    Args:
        coordinates: (V, 4) int32 batch, z, y, x; unique.
        shape: cells of the grid along z, y, x.
        batch_size: number of samples.
        kernel: odd edges of the kernel along z, y, x.
        dilation: cells between neighbouring offsets along z, y, x.
        num_threads: threads to use, by default all cores of this process.

    Returns:
        (V, K) int32, offsets in C order; -1 where there is no voxel.
    """
    _check_cells(coordinates, shape, batch_size)
    num_offsets = int(np.prod(kernel))
    rows = np.full((len(coordinates), num_offsets), -1, np.int32)
    flat = _flat_cells(coordinates, shape, batch_size)
    words, before, cells = _number(flat, batch_size * int(np.prod(shape)))
    row_of = np.empty(len(cells), np.int32)
    _rows_in_order(flat, words, before, row_of)
    sides = np.asarray(shape, np.int64)
    edges, steps = np.asarray(kernel, np.int64), np.asarray(dilation, np.int64)
    args = coordinates, sides, edges, steps, words, before, row_of, rows
    in_parallel(lambda a, b: _half(*args, a, b), len(coordinates), num_threads, smallest=1024)
    return rows


def strided_rows(
    coordinates: Array,
    shape: Sequence[int],
    out_shape: Sequence[int],
    batch_size: int,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    num_threads: int | None = None,
) -> tuple[Array, Array]:
    """Output cells of a convolution, and the input row under every offset of the kernel there.

    An output is every cell whose kernel covers a voxel, in ascending (batch, z, y, x).

    Args:
        coordinates: (V, 4) int32 batch, z, y, x; unique.
        shape: cells of the input's grid along z, y, x.
        out_shape: cells of the output's grid along z, y, x.
        batch_size: number of samples.
        kernel: edges of the kernel along z, y, x.
        stride: input cells per output cell.
        padding: cells that the grid is widened by on either side.
        dilation: cells between neighbouring offsets.
        num_threads: threads to use, by default all cores of this process.

    Returns:
        Coordinates (U, 4) and rows (U, K), int32; -1 where there is no voxel.
    """
    _check_cells(coordinates, shape, batch_size)
    num_cells = batch_size * int(np.prod(out_shape))
    _check_size(num_cells)
    geometry = np.asarray([out_shape, kernel, stride, padding, dilation], np.int64)
    # Along an axis at most every (stride / gcd)-th offset meets the stride.
    steps = [s // np.gcd(s, d) for s, d in zip(stride, dilation, strict=True)]
    most = int(np.prod([-(-k // s) for k, s in zip(kernel, steps, strict=True)]))
    flat = np.full((len(coordinates), most), -1, np.int64)
    offset = np.empty((len(coordinates), most), np.int32)
    in_parallel(
        lambda a, b: _outputs(coordinates, geometry, flat, offset, a, b),
        *(len(coordinates), num_threads),
        smallest=1024,
    )
    words, before, cells = _number(flat.reshape(-1), num_cells)
    rows = np.full((len(cells), int(np.prod(kernel))), -1, np.int32)
    args = flat, offset, words, before, rows
    in_parallel(lambda a, b: _scatter(*args, a, b), len(coordinates), num_threads, smallest=1024)
    out = np.empty((len(cells), 4), np.int32)
    _coordinates(cells, np.asarray(out_shape, np.int64), out)
    return out, rows


def invert_rows(rows: Array, num_inputs: int) -> Array:
    """(V, K) int32 output row that an input serves at every offset, -1 for none, of (U, K) rows."""
    by_input = np.full((num_inputs, rows.shape[1]), -1, np.int32)
    _invert(rows, by_input)
    return by_input


def _check_cells(coordinates: Array, shape: Sequence[int], batch_size: int) -> None:
    _check_size(batch_size * int(np.prod(shape)))
    outside = np.zeros(4, np.bool_)
    _find_outside(coordinates, np.asarray((batch_size, *shape), np.int64), outside)
    if outside.any():
        names = [("batch", "z", "y", "x")[axis] for axis in np.flatnonzero(outside)]
        raise ValueError(
            f"voxels lie outside the grid of {batch_size} samples of {tuple(shape)} cells in "
            f"{', '.join(names)}; coordinates are batch, z, y, x"
        )


@compiled
def _find_outside(coordinates, sides, outside):
    for v in range(len(coordinates)):
        for axis in range(4):
            outside[axis] |= (coordinates[v, axis] < 0) | (coordinates[v, axis] >= sides[axis])


def _check_size(num_cells: int) -> None:
    if num_cells > MOST_CELLS:
        raise ValueError(
            f"the grids of all samples have {num_cells:,} cells, the table can number "
            f"{MOST_CELLS:,}; split the batch or take larger voxels"
        )


def _flat_cells(coordinates: Array, shape: Sequence[int], batch_size: int) -> Array:
    flat = np.empty(len(coordinates), np.int64)
    _flatten(coordinates, np.asarray(shape, np.int64), flat)
    return flat


@compiled
def _flatten(coordinates, shape, flat):
    for v in range(len(coordinates)):
        plane = np.int64(coordinates[v, 0]) * shape[0] + coordinates[v, 1]
        flat[v] = (plane * shape[1] + coordinates[v, 2]) * shape[2] + coordinates[v, 3]


def _number(flat: Array, num_cells: int) -> tuple[Array, Array, Array]:
    """Bitmap, cells before each of its words that is not zero, and all cells in order."""
    words = np.zeros(num_cells // 64 + 1, np.uint64)
    summary = np.zeros(len(words) // 64 + 1, np.uint64)
    before = np.empty(len(words), np.int32)
    cells = np.empty(len(flat), np.int64)
    return words, before, cells[: _mark_and_count(flat, words, summary, before, cells)]


@compiled
def _mark_and_count(flat, words, summary, before, cells):
    """Mark the cells in the bitmap, those below zero not, and number them in order.

    A bit per word in the summary keeps an all but empty grid from being walked through.
    """
    one = np.uint64(1)
    for cell in flat:
        if cell >= 0:
            words[cell >> 6] |= one << np.uint64(cell & 63)
            summary[cell >> 12] |= one << np.uint64((cell >> 6) & 63)
    count = 0
    for s in range(len(summary)):
        many = summary[s]
        while many:
            w = s * 64 + _ones((many - one) & ~many)  # zeros below the lowest one
            many &= many - one
            before[w] = count
            word = words[w]
            while word:
                cells[count] = w * 64 + _ones((word - one) & ~word)
                word &= word - one
                count += 1
    return count


@compiled
def _rank(cell, words, before):
    """Number of a cell in ascending order, -1 if it is empty."""
    word, bit = words[cell >> 6], np.uint64(cell & 63)
    if (word >> bit) & np.uint64(1) == 0:
        return -1
    below = (np.uint64(1) << bit) - np.uint64(1)
    return before[cell >> 6] + _ones(word & below)


@compiled
def _rows_in_order(flat, words, before, row_of):
    for v in range(len(flat)):
        row_of[_rank(flat[v], words, before)] = v


@compiled
def _half(coordinates, shape, kernel, dilation, words, before, row_of, rows, low, high):
    # If u lies under offset k of v, v lies under the opposite offset of u: half of the offsets
    # tell all. A pair has one writer, whatever the number of threads.
    num_offsets = kernel[0] * kernel[1] * kernel[2]
    for v in range(low, high):
        rows[v, num_offsets // 2] = v
        batch, z = np.int64(coordinates[v, 0]), np.int64(coordinates[v, 1])
        y, x = np.int64(coordinates[v, 2]), np.int64(coordinates[v, 3])
        k = 0
        for i in range(kernel[0] // 2 + 1):
            zi = z + (i - kernel[0] // 2) * dilation[0]
            for j in range(kernel[1]):
                yj = y + (j - kernel[1] // 2) * dilation[1]
                if zi < 0 or yj < 0 or yj >= shape[1]:
                    k += kernel[2]
                    continue
                line = ((batch * shape[0] + zi) * shape[1] + yj) * shape[2]
                for l in range(kernel[2]):  # noqa: E741
                    if k >= num_offsets // 2:
                        break
                    xl = x + (l - kernel[2] // 2) * dilation[2]
                    if 0 <= xl < shape[2]:
                        rank = _rank(line + xl, words, before)
                        if rank >= 0:
                            u = row_of[rank]
                            rows[v, k] = u
                            rows[u, num_offsets - 1 - k] = v
                    k += 1


@compiled
def _outputs(coordinates, geometry, flat, offset, low, high):
    """The output cells that each input is under, and at which offset."""
    out_shape, kernel, stride, padding, dilation = geometry
    for v in range(low, high):
        count = 0
        for i in range(kernel[0]):
            z = coordinates[v, 1] + padding[0] - i * dilation[0]
            if z < 0 or z % stride[0] != 0 or z // stride[0] >= out_shape[0]:
                continue
            plane = coordinates[v, 0] * out_shape[0] + z // stride[0]
            for j in range(kernel[1]):
                y = coordinates[v, 2] + padding[1] - j * dilation[1]
                if y < 0 or y % stride[1] != 0 or y // stride[1] >= out_shape[1]:
                    continue
                line = plane * out_shape[1] + y // stride[1]
                for l in range(kernel[2]):  # noqa: E741
                    x = coordinates[v, 3] + padding[2] - l * dilation[2]
                    if x < 0 or x % stride[2] != 0 or x // stride[2] >= out_shape[2]:
                        continue
                    flat[v, count] = line * out_shape[2] + x // stride[2]
                    offset[v, count] = (i * kernel[1] + j) * kernel[2] + l
                    count += 1


@compiled
def _scatter(flat, offset, words, before, rows, low, high):
    for v in range(low, high):
        for m in range(flat.shape[1]):
            if flat[v, m] < 0:
                break
            rows[_rank(flat[v, m], words, before), offset[v, m]] = v


@compiled
def _coordinates(cells, shape, out):
    for u in range(len(cells)):
        row, x = divmod(cells[u], shape[2])
        row, y = divmod(row, shape[1])
        batch, z = divmod(row, shape[0])
        out[u, 0], out[u, 1] = batch, z
        out[u, 2], out[u, 3] = y, x


@compiled
def _invert(rows, by_input):
    for u in range(rows.shape[0]):
        for k in range(rows.shape[1]):
            if rows[u, k] >= 0:
                by_input[rows[u, k], k] = u
