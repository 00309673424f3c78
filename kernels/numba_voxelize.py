"""Voxelization on the CPU, on numpy arrays, without torch.

Voxels are found with a bitmap of the grid: one bit per cell, so that a voxel's number is the count
of bits before its own. That needs no sort and no hash table, and numbers the voxels in the order
of their cells. A bit per 64 cells above it keeps an all but empty grid from being walked through.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .threads import available_threads, compiled, in_parallel

Array = NDArray

# 256 MB of address space, of which only the pages that points touch are ever used.
MOST_BITS = 1 << 31


def group_points(
    points: Array,
    batch_index: Array,
    batch_size: int,
    point_range: Sequence[float],
    voxel_size: Sequence[float],
    shape: Sequence[int],
    max_points: int | None = None,
    max_voxels: int | None = None,
    num_threads: int | None = None,
) -> tuple[Array, Array, Array]:
    """Number the voxels that hold points; see ``voxelize`` for the arguments.

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
        Coordinates (V, 4), number of points (V,), and the voxel of each point (P,), all int64.
    """
    num_points = len(points)
    bounds = np.asarray([*point_range, *voxel_size], points.dtype)
    flat = np.empty(num_points, np.int64)
    sides = np.asarray(shape, np.int64)
    source = points, batch_index, batch_size, bounds, sides, flat
    in_parallel(lambda a, b: _flat_cells(*source, a, b), num_points, num_threads, smallest=4096)

    num_cells = batch_size * int(sides.prod())
    if num_cells <= MOST_BITS:
        voxel_flat, point_voxel = _number_by_bitmap(flat, num_cells, num_threads)
    else:
        voxel_flat, inverse = np.unique(flat[flat >= 0], return_inverse=True)
        point_voxel = np.full(num_points, -1)
        point_voxel[flat >= 0] = inverse.reshape(-1)
    if max_points is None and max_voxels is None:
        counts = np.zeros(len(voxel_flat), np.int64)
        _count(point_voxel, counts)
    else:
        most = np.iinfo(np.int64).max
        caps = max_points or most, max_voxels or most
        voxel_batch = voxel_flat // sides.prod()
        kept, counts = _keep_first(point_voxel, voxel_batch, batch_size, *caps)
        voxel_flat = voxel_flat[kept]
    coordinates = np.empty((len(voxel_flat), 4), np.int64)
    args = voxel_flat, *sides.tolist(), coordinates
    in_parallel(lambda a, b: _coordinates(*args, a, b), len(voxel_flat), num_threads, smallest=4096)
    return coordinates, counts, point_voxel


@compiled
def _flat_cells(points, batch_index, batch_size, bounds, shape, flat, low, high):
    nx, ny, nz = shape
    for p in range(low, high):
        x, y, z = points[p, 0], points[p, 1], points[p, 2]
        batch = batch_index[p]
        inside = (x >= bounds[0]) & (x < bounds[3]) & (y >= bounds[1]) & (y < bounds[4])
        if inside & (z >= bounds[2]) & (z < bounds[5]) & (batch >= 0) & (batch < batch_size):
            # Clipped: rounding in the division may not leave the grid.
            i = min(np.int64((x - bounds[0]) / bounds[6]), nx - 1)
            j = min(np.int64((y - bounds[1]) / bounds[7]), ny - 1)
            k = min(np.int64((z - bounds[2]) / bounds[8]), nz - 1)
            flat[p] = ((batch * nx + i) * ny + j) * nz + k
        else:
            flat[p] = -1


def _number_by_bitmap(flat: Array, num_cells: int, num_threads: int | None) -> tuple[Array, Array]:
    words = np.zeros(num_cells // 64 + 1, np.uint64)
    summary = np.zeros(len(words) // 64 + 1, np.uint64)
    # Voxels before each word that is not zero, within its thread's part of the grid.
    before = np.empty(len(words), np.int32)
    parts: dict[int, Array] = {}

    def number(low: int, high: int) -> None:
        found = np.empty(len(flat), np.int64)
        parts[low] = found[: _mark_and_count(flat, words, summary, before, found, low, high)]

    # Every thread walks through all points and marks those of its part: no locks.
    share = max(-(-len(summary) // (num_threads or available_threads())), 1)
    in_parallel(number, len(summary), num_threads, share)
    earlier = np.zeros(len(summary), np.int32)  # voxels in the parts before
    total = 0
    for low in sorted(parts):
        earlier[low:] = total
        total += len(parts[low])
    point_voxel = np.empty(len(flat), np.int64)
    in_parallel(
        lambda a, b: _look_up(flat, words, before, earlier, point_voxel, a, b),
        *(len(flat), num_threads),
        smallest=4096,
    )
    return np.concatenate([parts[low] for low in sorted(parts)]), point_voxel


@compiled
def _ones(word):
    # The textbook form, which the compiler turns into one instruction.
    word = word - ((word >> np.uint64(1)) & np.uint64(0x5555555555555555))
    pairs = word & np.uint64(0x3333333333333333)
    word = pairs + ((word >> np.uint64(2)) & np.uint64(0x3333333333333333))
    word = (word + (word >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((word * np.uint64(0x0101010101010101)) >> np.uint64(56))


@compiled
def _mark_and_count(flat, words, summary, before, voxel_flat, low, high):
    """Mark the cells of the summary words low to high, and number those that are marked."""
    one = np.uint64(1)
    for cell in flat:
        if low <= cell >> 12 < high:
            words[cell >> 6] |= one << np.uint64(cell & 63)
            summary[cell >> 12] |= one << np.uint64((cell >> 6) & 63)
    num_voxels = 0
    for s in range(low, high):
        many = summary[s]
        while many:
            w = s * 64 + _ones((many - one) & ~many)  # zeros below the lowest one
            many &= many - one
            before[w] = num_voxels
            word = words[w]
            while word:
                voxel_flat[num_voxels] = w * 64 + _ones((word - one) & ~word)
                word &= word - one
                num_voxels += 1
    return num_voxels


@compiled
def _look_up(flat, words, before, earlier, point_voxel, low, high):
    one = np.uint64(1)
    for p in range(low, high):
        cell = flat[p]
        if cell >= 0:
            below = (one << np.uint64(cell & 63)) - one
            inner = before[cell >> 6] + _ones(words[cell >> 6] & below)
            point_voxel[p] = earlier[cell >> 12] + inner
        else:
            point_voxel[p] = -1


@compiled
def _count(point_voxel, counts):
    for voxel in point_voxel:
        if voxel >= 0:
            counts[voxel] += 1


@compiled
def _keep_first(point_voxel, voxel_batch, batch_size, max_points, max_voxels):
    """Renumber voxels by first point within each sample and apply the caps, in place."""
    num_voxels = len(voxel_batch)
    number = np.full(num_voxels, -1, np.int32)  # within the sample
    counts = np.zeros(num_voxels, np.int64)
    first = np.zeros(batch_size + 1, np.int64)
    for p in range(len(point_voxel)):
        voxel = point_voxel[p]
        if voxel < 0:
            continue
        batch = voxel_batch[voxel]
        if number[voxel] < 0 and first[batch + 1] < max_voxels:
            number[voxel] = first[batch + 1]
            first[batch + 1] += 1
        if number[voxel] < 0 or counts[voxel] == max_points:
            point_voxel[p] = -1
        else:
            counts[voxel] += 1
    for batch in range(batch_size):
        first[batch + 1] += first[batch]
    kept = np.empty(first[batch_size], np.int64)
    for voxel in range(num_voxels):
        if number[voxel] >= 0:
            number[voxel] += first[voxel_batch[voxel]]
            kept[number[voxel]] = voxel
    for p in range(len(point_voxel)):
        if point_voxel[p] >= 0:
            point_voxel[p] = number[point_voxel[p]]
    return kept, counts[kept]


@compiled
def _coordinates(voxel_flat, nx, ny, nz, coordinates, low, high):
    # Quotients by multiplication, which is vectorised: with the half added they lie off the whole
    # numbers by more than rounding, below 2**50 cells.
    per_x, per_y, per_z = 1.0 / nx, 1.0 / ny, 1.0 / nz
    for v in range(low, high):
        cell = voxel_flat[v]
        row = np.int64((cell + 0.5) * per_z)
        column = np.int64((row + 0.5) * per_y)
        batch = np.int64((column + 0.5) * per_x)
        coordinates[v, 0], coordinates[v, 1] = batch, column - batch * nx
        coordinates[v, 2], coordinates[v, 3] = row - column * ny, cell - row * nz


def mean_of_points(
    features: Array, point_voxel: Array, counts: Array, num_threads: int | None = None
) -> Array:
    """Mean over the points of every voxel.

    Args:
        features: (P, C) float32 or float64, C-contiguous.
        point_voxel: (P,) int64 from :func:`group_points`.
        counts: (V,) int64, points in each voxel.
        num_threads: threads to use, by default all cores of this process.

    Returns:
        (V, C).
    """
    mean = np.zeros((len(counts), features.shape[1]), features.dtype)
    _over_voxels(_mean_points, num_threads, features, point_voxel, mean, counts)
    return mean


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
    _over_voxels(_max_points, num_threads, features, point_voxel, greatest, winner)
    return greatest, winner


def _over_voxels(work, num_threads: int | None, features, point_voxel, *out) -> None:
    # Every thread walks through all points and takes those of its voxels: no locks, no sort, and
    # the sum of a voxel runs in input order whatever the number of threads.
    num_voxels, num_threads = len(out[0]), num_threads or available_threads()
    share = max(-(-num_voxels // num_threads), 1)
    in_parallel(
        lambda a, b: work(features, point_voxel, *out, a, b), num_voxels, num_threads, share
    )


@compiled
def _mean_points(features, point_voxel, mean, counts, low, high):
    for p in range(len(point_voxel)):
        voxel = point_voxel[p]
        if low <= voxel < high:
            if features.shape[1] == 5:  # as LiDAR points have: written out, a third faster
                mean[voxel, 0] += features[p, 0]
                mean[voxel, 1] += features[p, 1]
                mean[voxel, 2] += features[p, 2]
                mean[voxel, 3] += features[p, 3]
                mean[voxel, 4] += features[p, 4]
            else:
                for c in range(features.shape[1]):
                    mean[voxel, c] += features[p, c]
    for voxel in range(low, high):
        if counts[voxel] > 1:
            for c in range(features.shape[1]):
                mean[voxel, c] /= mean.dtype.type(counts[voxel])


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
