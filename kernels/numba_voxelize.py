"""Voxelization on the CPU, on numpy arrays, without torch.

Points are first dealt into tiles: runs of cells short enough that a bitmap of one, with one bit
per cell, stays in a core's cache. In a tile the number of a voxel is the count of bits before its
own, so that no sort and no hash table is needed, voxels are numbered in the order of their cells,
and threads share nothing. Within a tile points stay in input order, which sums and caps follow.

Memory that a process touches for the first time costs more than all arithmetic here, so there is
little of it besides the results: the cell of a point is kept where its voxel will be written, and
16 bytes per point are set aside.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .threads import available_threads, compiled, in_parallel

Array = NDArray

# A tile has at most 2**19 cells: a bitmap of 64 KB.
TILE_BITS = 19
# With more cells, those that hold points are found by sorting, and numbered before they are dealt.
MOST_CELLS = 1 << 31
# A record is the number of a point and, in its low bits, its cell or voxel within the tile.
LOW_BITS = 20
LOW = (1 << LOW_BITS) - 1
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
        points: (P, 3 or more) float32 or float64, C-contiguous.
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
    num_threads = num_threads or available_threads()
    sides = np.asarray((batch_size, *shape), np.int64)
    bounds = np.asarray([*point_range, *voxel_size], points.dtype)
    point_voxel = np.empty(len(points), np.int64)  # of cells, to begin with
    args = points, batch_index, bounds, sides, point_voxel
    in_parallel(lambda a, b: _find_cells(*args, a, b), len(points), num_threads, smallest=4096)

    num_cells, occupied = int(sides.prod()), None
    if num_cells > MOST_CELLS:
        inside = point_voxel >= 0
        occupied, number = np.unique(point_voxel[inside], return_inverse=True)
        point_voxel[inside] = number.reshape(-1)
        num_cells = len(occupied)
    tiles = _deal(point_voxel, num_cells, num_threads)
    cells = np.zeros(len(tiles.records), np.int64)  # of the voxels of tile t from first[t] on
    num_voxels = np.zeros(len(tiles.first) - 1, np.int64)
    _over_tiles(_number, tiles, num_threads, cells, num_voxels)
    if occupied is not None and len(occupied):
        cells = occupied[cells]

    total, rows = int(num_voxels.sum()), None
    most = len(points) + 1  # more than there can be
    if max_points is not None or max_voxels is not None:
        rows = np.full(len(tiles.records), -1, np.int64)
        _over_tiles(_find_first_points, tiles, num_threads, rows, point_voxel)
        total = _rows_by_first_point(point_voxel, batch_index, batch_size, max_voxels or most, rows)
    mean = np.zeros((total, points.shape[1]), points.dtype)
    coordinates, counts = np.empty((total, 4), np.int64), np.zeros(total, np.int64)
    before = np.append(0, num_voxels.cumsum())
    _over_tiles(_write_coordinates, tiles, num_threads, cells, before, rows, sides, coordinates)
    out = mean, counts, point_voxel
    _over_tiles(_write_means, tiles, num_threads, points, before, rows, max_points or most, *out)
    return mean, coordinates, counts, point_voxel


# --- Cells of points, and points by tile ----------------------------------------------------------


@compiled
def _find_cells(points, batch_index, bounds, sides, cell_of, low, high):
    batch_size = sides[0]
    nx, ny, nz = np.int32(sides[1]), np.int32(sides[2]), np.int32(sides[3])
    x0, y0, z0, x1, y1, z1 = bounds[0], bounds[1], bounds[2], bounds[3], bounds[4], bounds[5]
    dx, dy, dz = bounds[6], bounds[7], bounds[8]
    xs, ys = np.empty(BLOCK, points.dtype), np.empty(BLOCK, points.dtype)
    zs = np.empty(BLOCK, points.dtype)
    for start in range(low, high, BLOCK):
        size = min(BLOCK, high - start)
        for i in range(size):
            xs[i], ys[i], zs[i] = points[start + i, 0], points[start + i, 1], points[start + i, 2]
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


def _deal(cell_of: Array, num_cells: int, num_threads: int) -> _Tiles:
    # At least a hundred tiles where there are cells enough, for the sake of many threads.
    shift = min(TILE_BITS, max(num_cells.bit_length() - 7, 6))
    num_tiles = (num_cells >> shift) + 1
    # Each chunk of points has a place of its own in every tile, after those of earlier chunks.
    num_chunks = max(min(4 * num_threads, len(cell_of) // 4096), 1)
    edges = np.linspace(0, len(cell_of), num_chunks + 1).astype(np.int64)
    sizes = np.zeros((num_chunks, num_tiles + 1), np.int64)  # tile 0: points outside
    in_parallel(lambda a, b: _count(cell_of, edges, shift, sizes, a, b), num_chunks, num_threads)
    sizes[:, 0] = 0
    ends = sizes.T.reshape(-1).cumsum().reshape(num_tiles + 1, num_chunks).T
    place = ends - sizes
    first = np.append(place[0, 1:], ends[-1, -1])
    records = np.empty(first[-1], np.int64)
    args = cell_of, edges, shift, place, records
    in_parallel(lambda a, b: _place(*args, a, b), num_chunks, num_threads)
    return _Tiles(shift, first, records)


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

    in_parallel(some, len(tiles.records), num_threads, smallest=4096)


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
    before = np.empty(len(words), np.int32)
    for tile in range(low, high):
        begin, end = first[tile], first[tile + 1]
        if begin == end:
            continue
        for q in range(begin, end):
            cell = records[q] & LOW
            words[cell >> 6] |= one << np.uint64(cell & 63)
        total = 0
        for w in range(len(words)):
            before[w] = total
            total += _ones(words[w])
        num_voxels[tile] = total
        for q in range(begin, end):
            cell = records[q] & LOW
            below = (one << np.uint64(cell & 63)) - one
            voxel = before[cell >> 6] + _ones(words[cell >> 6] & below)
            records[q] = (records[q] & keep) | voxel
            cells[begin + voxel] = (tile << shift) + cell
        words[:] = 0


# --- Caps -----------------------------------------------------------------------------------------


@compiled
def _find_first_points(records, first, shift, seen, slot_of, low, high):
    """Slot of the voxel that a point is the first of, -1 for other points."""
    for tile in range(low, high):
        begin = first[tile]
        for q in range(begin, first[tile + 1]):
            slot = begin + (records[q] & LOW)
            slot_of[records[q] >> LOW_BITS] = slot if seen[slot] < 0 else -1
            seen[slot] = 0


@compiled
def _rows_by_first_point(slot_of, batch_index, batch_size, max_voxels, rows):
    """Row of each slot's voxel by sample and first point, -1 beyond the cap; the number of rows."""
    next_row = np.zeros(batch_size + 1, np.int64)
    for p in range(len(slot_of)):
        if slot_of[p] >= 0:
            next_row[batch_index[p] + 1] += 1
    for batch in range(batch_size):
        next_row[batch + 1] = next_row[batch] + min(next_row[batch + 1], max_voxels)
    end, total = next_row[1:].copy(), next_row[batch_size]
    for p in range(len(slot_of)):
        if slot_of[p] >= 0:
            batch = batch_index[p]
            if next_row[batch] < end[batch]:
                rows[slot_of[p]] = next_row[batch]
                next_row[batch] += 1
            else:
                rows[slot_of[p]] = -1
    return total


# --- Results --------------------------------------------------------------------------------------


@compiled
def _write_coordinates(records, first, shift, cells, before, rows, sides, coordinates, low, high):
    # Quotients by multiplication, which is vectorised: with the half added they lie off the whole
    # numbers by more than rounding, below 2**50 cells.
    nx, ny, nz = sides[1], sides[2], sides[3]
    per_x, per_y, per_z = 1.0 / nx, 1.0 / ny, 1.0 / nz
    block = np.empty((4, BLOCK), np.int64)
    for tile in range(low, high):
        for start in range(0, before[tile + 1] - before[tile], BLOCK):
            size = min(BLOCK, before[tile + 1] - before[tile] - start)
            for i in range(size):
                cell = cells[first[tile] + start + i]
                row = np.int64((cell + 0.5) * per_z)
                column = np.int64((row + 0.5) * per_y)
                batch = np.int64((column + 0.5) * per_x)
                block[0, i], block[1, i] = batch, column - batch * nx
                block[2, i], block[3, i] = row - column * ny, cell - row * nz
            for i in range(size):
                v = before[tile] + start + i
                if rows is not None:
                    v = rows[first[tile] + start + i]
                if v >= 0:
                    for axis in range(4):
                        coordinates[v, axis] = block[axis, i]


@compiled
def _write_means(
    records, first, shift, points, before, rows, max_points, mean, counts, point_voxel, low, high
):
    for tile in range(low, high):
        for q in range(first[tile], first[tile + 1]):
            p, v = records[q] >> LOW_BITS, before[tile] + (records[q] & LOW)
            if rows is not None:
                v = rows[first[tile] + (records[q] & LOW)]
                if v < 0 or counts[v] == max_points:
                    point_voxel[p] = -1
                    continue
            point_voxel[p] = v
            counts[v] += 1
            if mean.shape[1] == 5:  # as LiDAR points have: written out, a third faster
                mean[v, 0] += points[p, 0]
                mean[v, 1] += points[p, 1]
                mean[v, 2] += points[p, 2]
                mean[v, 3] += points[p, 3]
                mean[v, 4] += points[p, 4]
            else:
                for c in range(mean.shape[1]):
                    mean[v, c] += points[p, c]
        for i in range(before[tile + 1] - before[tile]):
            v = before[tile] + i
            if rows is not None:
                v = rows[first[tile] + i]
            if v >= 0 and counts[v] > 1:
                for c in range(mean.shape[1]):
                    mean[v, c] /= mean.dtype.type(counts[v])


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
