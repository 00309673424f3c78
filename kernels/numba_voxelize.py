"""Voxelization on the CPU, on numpy arrays, without torch.

Points are first dealt into tiles: runs of cells short enough that a bitmap of one, with one bit
per cell, stays in a core's cache. In a tile the number of a voxel is the count of bits before its
own, so that no sort and no hash table is needed, voxels are numbered in the order of their cells,
and threads share nothing. Within a tile points stay in input order, which sums and caps follow.

Memory that a process touches for the first time costs more than all arithmetic here. So there is
little of it besides the results, 24 bytes per point and the sums of one tile, and results and
scratch are one allocation each: malloc keeps such blocks from call to call, where it gives many
small ones back every time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from .numba_vector import EIGHT, add_eight, scale_eight
from .threads import available_threads, compiled, in_parallel

Array = NDArray

# A tile has at most 2**19 cells: a bitmap of 64 KB.
TILE_BITS = 19
# With more cells, those that hold points are found by sorting, and numbered before they are dealt.
MOST_CELLS = 1 << 31
# A record is the number of a point and, in its low bits, its cell or voxel within the tile.
LOW_BITS = 20
LOW = (1 << LOW_BITS) - 1
# A thread's range of points is as long at least: handing one over costs as much as 5,000 points.
FEWEST = 4096
# Rows that are computed column by column before they are written, which makes it vector code.
BLOCK = 256


@dataclass(frozen=True)
class _Tiles:
    """The points inside the grid by tile: those of tile t are records first[t] to first[t + 1]."""

    shift: int  # a tile has 2**shift cells
    first: Array  # (T + 1,) int64
    records: Array  # (Q,) int64


def voxelize_points(
    points: Array,
    batch_index: Array,
    batch_size: int,
    point_range: Sequence[float],
    voxel_size: Sequence[float],
    shape: Sequence[int],
    max_points: int | None = None,
    max_voxels: int | None = None,
    num_threads: int | None = None,
) -> tuple[Array, Array, Array, Array]:
    """Group points into voxels and average them; see ``voxelize`` for the arguments.

    Args:
        points: (P, 3 or more) float32 or float64.
        batch_index: (P,) int64.
        batch_size: number of samples.
        point_range: lower x, y, z and upper x, y, z.
        voxel_size: edges along x, y, z.
        shape: number of cells along x, y, z.
        max_points: cap on points per voxel.
        max_voxels: cap on voxels per sample.
        num_threads: threads to use, by default all cores of this process.

    Returns:
        Means (V, C) in the dtype of the points, coordinates (V, 4), number of points (V,) and the
        voxel of each point (P,), these int64.
    """
    num_threads, points = num_threads or available_threads(), np.ascontiguousarray(points)
    sides = np.asarray((batch_size, *shape), np.int64)
    bounds = np.asarray([*point_range, *voxel_size], points.dtype)
    cell_of, records, cells = _in_one_block(*[((len(points),), np.int64)] * 3)
    num_cells, occupied = int(sides.prod()), None
    in_order = num_cells <= MOST_CELLS
    deal = _Deal(len(points), num_cells if in_order else 1, num_threads)
    args = points, batch_index, bounds, sides, deal.edges, deal.shift if in_order else 63
    deal.by_chunk(_find_cells, *args, cell_of, deal.sizes)
    if not in_order:
        inside = cell_of >= 0
        occupied, number = np.unique(cell_of[inside], return_inverse=True)
        cell_of[inside] = number.reshape(-1)
        deal = _Deal(len(points), len(occupied), num_threads)
        deal.count(cell_of)
    tiles, num_voxels = deal.number(cell_of, records, cells)
    if max_voxels is not None and num_voxels.sum() > max_voxels:  # or a sample may have too many
        slot_of = np.full(len(points), -1, np.int64)
        _over_tiles(_find_slots, tiles, num_threads, slot_of)
        _drop_later_voxels(slot_of, batch_index, batch_size, max_voxels, cell_of)
        deal.count(cell_of)
        tiles, num_voxels = deal.number(cell_of, records, cells)

    before = np.append(0, num_voxels.cumsum())
    total, most = int(before[-1]), max_points or len(points)
    mean, coordinates, counts, point_voxel = _in_one_block(
        *(((total, points.shape[1]), points.dtype), ((total, 4), np.int64)),
        *(((total,), np.int64), ((len(points),), np.int64)),
    )
    point_voxel[:] = -1
    out = mean, coordinates, counts, point_voxel
    _over_tiles(
        *(_write_voxels, tiles, num_threads, points, cells, occupied, before, sides, most, *out)
    )
    return mean, coordinates, counts, point_voxel


def _in_one_block(*arrays: tuple[tuple[int, ...], np.dtype | type]) -> list[Array]:
    """Arrays of these shapes and types, not filled, out of one allocation."""
    sizes = [math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in arrays]
    ends = list(accumulate(-(-size // 64) * 64 for size in sizes))
    block = np.empty(ends[-1], np.uint8)
    return [
        block[begin : begin + size].view(dtype).reshape(shape)
        for begin, size, (shape, dtype) in zip([0, *ends], sizes, arrays)
    ]


# --- Cells of points, and points by tile ----------------------------------------------------------


class _Deal:
    """Points dealt into tiles by a few chunks of points at a time, of which each counts its own."""

    def __init__(self, num_points: int, num_cells: int, num_threads: int):
        # At least a hundred tiles where there are cells enough, for the sake of many threads.
        self.shift = min(TILE_BITS, max(num_cells.bit_length() - 7, 6))
        self.num_threads = num_threads
        num_chunks = max(min(num_threads, num_points // FEWEST), 1)  # two each: 6 % slower
        edges = (num_points * i // num_chunks for i in range(num_chunks + 1))
        self.edges = np.fromiter(edges, np.int64, num_chunks + 1)
        # Tile 0: points outside.
        self.sizes = np.zeros((num_chunks, (num_cells >> self.shift) + 2), np.int64)

    def by_chunk(self, work: Callable, *args: object) -> None:
        in_parallel(lambda a, b: work(*args, a, b), len(self.sizes), self.num_threads)

    def count(self, cell_of: Array) -> None:
        """Count the points of each chunk in each tile anew."""
        self.sizes[:] = 0
        self.by_chunk(_count, cell_of, self.edges, self.shift, self.sizes)

    def number(self, cell_of: Array, records: Array, cells: Array) -> tuple[_Tiles, Array]:
        """Write records and cells; the tiles, and the number of voxels in each."""
        # Each chunk of points has a place of its own in every tile, after those of earlier chunks.
        self.sizes[:, 0] = 0
        ends = self.sizes.T.reshape(-1).cumsum().reshape(self.sizes.T.shape).T
        place = ends - self.sizes
        first = np.append(place[0, 1:], ends[-1, -1])
        self.by_chunk(_place, cell_of, self.edges, self.shift, place, records)
        tiles = _Tiles(self.shift, first, records[: first[-1]])
        num_voxels = np.zeros(len(first) - 1, np.int64)
        _over_tiles(_number, tiles, self.num_threads, cells, num_voxels)
        return tiles, num_voxels


@compiled
def _find_cells(points, batch_index, bounds, sides, edges, shift, cell_of, sizes, low, high):
    batch_size = sides[0]
    nx, ny, nz = np.int32(sides[1]), np.int32(sides[2]), np.int32(sides[3])
    x0, y0, z0, x1, y1, z1 = bounds[0], bounds[1], bounds[2], bounds[3], bounds[4], bounds[5]
    dx, dy, dz = bounds[6], bounds[7], bounds[8]
    xs, ys = np.empty(BLOCK, points.dtype), np.empty(BLOCK, points.dtype)
    zs = np.empty(BLOCK, points.dtype)
    for chunk in range(low, high):
        for start in range(edges[chunk], edges[chunk + 1], BLOCK):
            size = min(BLOCK, edges[chunk + 1] - start)
            for i in range(size):
                xs[i], ys[i], zs[i] = (
                    points[start + i, 0],
                    points[start + i, 1],
                    points[start + i, 2],
                )
            for i in range(size):
                x, y, z, batch = xs[i], ys[i], zs[i], batch_index[start + i]
                inside = (x >= x0) & (x < x1) & (y >= y0) & (y < y1) & (z >= z0) & (z < z1)
                inside &= (batch >= 0) & (batch < batch_size)
                # Clipped: rounding in the division may not leave the grid.
                column = min(np.int32((x - x0) / dx), np.int32(nx - 1))
                row = min(np.int32((y - y0) / dy), np.int32(ny - 1))
                layer = min(np.int32((z - z0) / dz), np.int32(nz - 1))
                cell = ((batch * nx + column) * ny + row) * nz + layer
                cell_of[start + i] = cell if inside else -1
            for i in range(size):
                sizes[chunk, (cell_of[start + i] >> shift) + 1] += 1


@compiled
def _count(cell_of, edges, shift, sizes, low, high):
    for chunk in range(low, high):
        for p in range(edges[chunk], edges[chunk + 1]):
            sizes[chunk, (cell_of[p] >> shift) + 1] += 1


@compiled
def _place(cell_of, edges, shift, place, records, low, high):
    within = (1 << shift) - 1
    for chunk in range(low, high):
        for p in range(edges[chunk], edges[chunk + 1]):
            cell = cell_of[p]
            if cell >= 0:
                tile = (cell >> shift) + 1
                records[place[chunk, tile]] = (p << LOW_BITS) | (cell & within)
                place[chunk, tile] += 1


def _over_tiles(work: Callable, tiles: _Tiles, num_threads: int, *args: object) -> None:
    """Call ``work`` for ranges of tiles with about as many points each."""
    first = tiles.first

    def some(low: int, high: int) -> None:
        ends = np.searchsorted(first[:-1], (low, high))
        work(tiles.records, first, tiles.shift, *args, *ends)

    smallest = max(FEWEST, len(tiles.records) // num_threads)
    in_parallel(some, len(tiles.records), num_threads, smallest)


# --- Voxels of a tile -----------------------------------------------------------------------------


@compiled
def _ones(word):
    # The textbook form, which the compiler turns into one instruction.
    word = word - ((word >> np.uint64(1)) & np.uint64(0x5555555555555555))
    pairs = word & np.uint64(0x3333333333333333)
    word = pairs + ((word >> np.uint64(2)) & np.uint64(0x3333333333333333))
    word = (word + (word >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((word * np.uint64(0x0101010101010101)) >> np.uint64(56))


@compiled
def _number(records, first, shift, cells, num_voxels, low, high):
    """Put the number of a point's voxel in place of its cell, and list the cells of voxels."""
    one, keep = np.uint64(1), ~np.int64(LOW)
    words = np.zeros(1 << (shift - 6), np.uint64)
    used = np.zeros((len(words) >> 6) + 1, np.uint64)  # a bit per word that is not zero
    before = np.empty(len(words), np.int32)
    for tile in range(low, high):
        begin, end = first[tile], first[tile + 1]
        for q in range(begin, end):
            word = (records[q] & LOW) >> 6
            words[word] |= one << np.uint64(records[q] & 63)
            used[word >> 6] |= one << np.uint64(word & 63)
        total = 0
        for u in range(len(used) if end > begin else 0):
            rest = used[u]
            while rest:
                lower = rest - one
                word = (u << 6) + _ones(lower & ~rest)
                before[word] = total
                total += _ones(words[word])
                rest &= lower
        num_voxels[tile] = total
        for q in range(begin, end):
            cell = records[q] & LOW
            below = (one << np.uint64(cell & 63)) - one
            voxel = before[cell >> 6] + _ones(words[cell >> 6] & below)
            records[q] = (records[q] & keep) | voxel
            cells[begin + voxel] = (tile << shift) + cell
        for i in range(begin, begin + total):
            word = (cells[i] >> 6) & (len(words) - 1)
            words[word] = 0
            used[word >> 6] = 0


# --- Cap on voxels --------------------------------------------------------------------------------


@compiled
def _find_slots(records, first, shift, slot_of, low, high):
    """A number of its own for each voxel: where its cell is listed."""
    for tile in range(low, high):
        for q in range(first[tile], first[tile + 1]):
            slot_of[records[q] >> LOW_BITS] = first[tile] + (records[q] & LOW)


@compiled
def _drop_later_voxels(slot_of, batch_index, batch_size, max_voxels, cell_of):
    """Put the points outside whose voxels begin after the first ``max_voxels`` of their sample."""
    num_voxels = np.zeros(batch_size, np.int64)
    seen, dropped = np.zeros(len(slot_of), np.bool_), np.zeros(len(slot_of), np.bool_)
    for p in range(len(slot_of)):
        slot = slot_of[p]
        if slot >= 0:
            if not seen[slot]:
                seen[slot], dropped[slot] = True, num_voxels[batch_index[p]] >= max_voxels
                num_voxels[batch_index[p]] += 1
            if dropped[slot]:
                cell_of[p] = -1


# --- Results --------------------------------------------------------------------------------------


@compiled
def _write_voxels(
    records, first, shift, points, cells, occupied, before, sides, max_points,
    mean, coordinates, counts, point_voxel, low, high,
):  # fmt: skip
    most, lanes = 0, -(-points.shape[1] // EIGHT) * EIGHT
    for tile in range(low, high):
        most = max(most, before[tile + 1] - before[tile])
    sums = np.empty((most, lanes), points.dtype)
    for tile in range(low, high):
        base, end = before[tile], before[tile + 1]
        own_cells = cells[first[tile] : first[tile] + end - base]
        if occupied is not None:
            own_cells = occupied[own_cells]
        _write_coordinates(own_cells, sides, coordinates[base:end])
        own = records[first[tile] : first[tile + 1]]
        _count_points(own, base, max_points, counts[base:end], point_voxel)
        _sum_points(own, points, sums[: end - base])
        _write_means(sums, counts[base:end], mean[base:end])


@compiled
def _count_points(records, base, max_points, counts, point_voxel):
    """Count points and say which voxel each is in; those beyond the cap lose their record."""
    counts[:] = 0
    for q in range(len(records)):
        p, i = records[q] >> LOW_BITS, records[q] & LOW
        if counts[i] == max_points:
            records[q] = -1
            continue
        counts[i] += 1
        point_voxel[p] = base + i


@compiled
def _sum_points(records, points, sums):
    """Sums in input order. Lanes beyond the width add up what lies behind a point."""
    flat, flat_sums = points.reshape(-1), sums.reshape(-1)
    width, lanes = points.shape[1], sums.shape[1]
    sums[:] = 0
    for q in range(len(records)):
        p, i = records[q] >> LOW_BITS, records[q] & LOW
        if p < 0:
            continue
        for c in range(0, width, EIGHT):
            a = p * width + c
            if a + EIGHT <= len(flat):
                add_eight(flat_sums, i * lanes + c, flat, a)
            else:
                for k in range(c, width):
                    sums[i, k] += points[p, k]


@compiled
def _write_means(sums, counts, mean):
    """Sums by numbers of points. What is written behind a mean is overwritten by the next."""
    flat, flat_sums = mean.reshape(-1), sums.reshape(-1)
    width, lanes, one = mean.shape[1], sums.shape[1], mean.dtype.type(1)
    for i in range(len(counts)):
        share = one / mean.dtype.type(counts[i])
        for c in range(0, width, EIGHT):
            a = i * width + c
            if a + EIGHT <= len(flat):
                scale_eight(flat, a, flat_sums, i * lanes + c, share)
            else:
                for k in range(c, width):
                    mean[i, k] = sums[i, k] * share


@compiled
def _write_coordinates(cells, sides, coordinates):
    # Quotients by multiplication, which is vectorised: with the half added they lie off the whole
    # numbers by more than rounding, below 2**50 cells.
    nx, ny, nz = sides[1], sides[2], sides[3]
    per_x, per_y, per_z = 1.0 / nx, 1.0 / ny, 1.0 / nz
    block = np.empty((4, BLOCK), np.int64)
    for start in range(0, len(cells), BLOCK):
        size = min(BLOCK, len(cells) - start)
        for i in range(size):
            cell = cells[start + i]
            row = np.int64((cell + 0.5) * per_z)
            column = np.int64((row + 0.5) * per_y)
            batch = np.int64((column + 0.5) * per_x)
            block[0, i], block[1, i] = batch, column - batch * nx
            block[2, i], block[3, i] = row - column * ny, cell - row * nz
        for i in range(size):
            for axis in range(4):
                coordinates[start + i, axis] = block[axis, i]


# --- Maxima ---------------------------------------------------------------------------------------


def max_of_points(
    features: Array, point_voxel: Array, num_voxels: int, num_threads: int | None = None
) -> tuple[Array, Array]:
    """Maximum over the points of every voxel, and the first point that has it.

    Args:
        features: (P, C) float32 or float64, C-contiguous.
        point_voxel: (P,) int64, -1 for a point in no voxel.
        num_voxels: number of voxels V.
        num_threads: threads to use, by default all cores of this process.

    Returns:
        Maxima (V, C), zero for a voxel without points, and point numbers (V, C) int64, then -1.
    """
    greatest = np.zeros((num_voxels, features.shape[1]), features.dtype)
    winner = np.full(greatest.shape, -1, np.int64)
    # Every thread walks through all points and takes those of its voxels: no locks, no sort.
    num_threads = num_threads or available_threads()
    args, share = (features, point_voxel, greatest, winner), max(-(-num_voxels // num_threads), 1)
    in_parallel(lambda a, b: _max_points(*args, a, b), num_voxels, num_threads, share)
    return greatest, winner


@compiled
def _max_points(features, point_voxel, greatest, winner, low, high):
    for p in range(len(point_voxel)):
        voxel = point_voxel[p]
        if low <= voxel < high:
            for c in range(features.shape[1]):
                value, best = features[p, c], greatest[voxel, c]
                # NaN wins, as in torch.amax.
                if winner[voxel, c] < 0 or value > best or (value != value and best == best):
                    greatest[voxel, c] = value
                    winner[voxel, c] = p
