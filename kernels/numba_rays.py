"""Rays through voxel volumes, on the CPU, on numpy arrays (Amanatides and Woo, 1987).

Positions are in voxels: voxel (i, j, k) reaches from (i, j, k) to (i, j, k) + 1.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .threads import compiled_in_order, in_parallel


def first_hits(
    volume: NDArray[np.uint8],
    free: int,
    origins: NDArray[np.float64],
    directions: NDArray[np.float64],
    wanted: NDArray[np.bool_] | None = None,
    num_threads: int | None = None,
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """What the rays from every origin in every direction meet first.

    Depth is where a ray leaves the voxel that it met, not where it enters: so does the published
    RayIoU. A ray that meets nothing has label ``free`` and the depth of the volume's border, one
    that starts outside the volume depth 0.

    Args:
        volume: (X, Y, Z) a class for each voxel.
        free: the class of voxels that rays pass.
        origins: (O, 3) voxels.
        directions: (R, 3) of length 1.
        wanted: (O, R) rays to cast; the others get label ``free`` and depth 0. None for all.
        num_threads: threads to use, by default all cores of this process.

    Returns:
        label (O, R) uint8 and depth (O, R) in voxels.
    """
    shape = (len(origins), len(directions))
    label, depth = np.full(shape, free, np.uint8), np.zeros(shape)
    wanted = np.ones(shape, np.bool_) if wanted is None else np.ascontiguousarray(wanted)
    args = (
        *(np.ascontiguousarray(volume), free),
        *(np.ascontiguousarray(a, np.float64) for a in (origins, directions)),
        *(wanted.ravel(), label.ravel(), depth.ravel()),
    )
    in_parallel(lambda a, b: _first_hits(*args, a, b), label.size, num_threads, smallest=256)
    return label, depth


def mark_crossed(
    seen: NDArray[np.uint8],
    origin: NDArray[np.float64],
    ends: NDArray[np.float64],
    with_end: bool = True,
) -> None:
    """Set the voxels to 1 that rays from one origin cross.

    Args:
        seen: (X, Y, Z), changed in place.
        origin: (3,) voxels; may lie outside.
        ends: (R, 3) voxels; may lie outside. A ray with an end that is not finite is left out.
        with_end: mark the voxel of the end too; without it, those that the ray leaves before.
    """
    origin, ends = (np.ascontiguousarray(a, np.float64) for a in (origin, ends))
    _mark_crossed(seen, origin, ends, with_end)


def mark_visible(
    seen: NDArray[np.uint8],
    volume: NDArray[np.uint8],
    free: int,
    origin: NDArray[np.float64],
    directions: NDArray[np.float64],
) -> None:
    """Set the voxels to 1 that rays from one origin pass, up to the first that is not free.

    Args:
        seen: (X, Y, Z), changed in place.
        volume: (X, Y, Z) a class for each voxel.
        free: the class of voxels that rays pass; the voxel that stops a ray is marked too.
        origin: (3,) voxels; may lie outside.
        directions: (R, 3) of any length above 0; one that is not finite is left out.
    """
    origin, directions = (np.ascontiguousarray(a, np.float64) for a in (origin, directions))
    _mark_visible(seen, np.ascontiguousarray(volume), free, origin, directions)


@compiled_in_order
def _axis(position, direction):
    """Voxel, step, ray length to the next border and between borders, along one axis."""
    cell = int(np.floor(position))
    if direction > 0:
        return cell, 1, (cell + 1 - position) / direction, 1 / direction
    if direction < 0:
        return cell, -1, (cell - position) / direction, -1 / direction
    return cell, 0, np.inf, np.inf


@compiled_in_order
def _first_hits(volume, free, origins, directions, wanted, label, depth, low, high):
    nx, ny, nz = volume.shape
    num_rays = len(directions)
    for ray in range(low, high):
        if not wanted[ray]:
            continue
        o, d = origins[ray // num_rays], directions[ray % num_rays]
        i, step_i, next_i, width_i = _axis(o[0], d[0])
        j, step_j, next_j, width_j = _axis(o[1], d[1])
        k, step_k, next_k, width_k = _axis(o[2], d[2])
        left = 0.0  # where the ray leaves the voxel it is in
        while 0 <= i < nx and 0 <= j < ny and 0 <= k < nz:
            left = min(next_i, next_j, next_k)
            if volume[i, j, k] != free:
                label[ray] = volume[i, j, k]
                break
            if next_i == left:
                i += step_i
                next_i += width_i
            elif next_j == left:
                j += step_j
                next_j += width_j
            else:
                k += step_k
                next_k += width_k
        depth[ray] = left


@compiled_in_order
def _mark_crossed(seen, start, ends, with_end):
    step, next_, width = np.empty(3, np.int64), np.empty(3), np.empty(3)
    cell, ray = np.empty(3, np.int64), np.empty(3)
    for r in range(len(ends)):
        for axis in range(3):
            ray[axis] = ends[r, axis] - start[axis]
        length = np.sqrt(ray[0] * ray[0] + ray[1] * ray[1] + ray[2] * ray[2])
        if not 1e-9 < length < np.inf:
            continue
        # A little beyond the end: the surface that was hit lies on a voxel's border as a rule.
        limit = 1.0 + 0.05 / length if with_end else 1.0
        t = _enter(start, ray, seen.shape, cell, step, next_, width)
        while t <= limit:
            left = min(next_[0], next_[1], next_[2])
            if with_end or left < 1.0:
                seen[cell[0], cell[1], cell[2]] = 1
            t = _advance(seen.shape, cell, step, next_, width)


@compiled_in_order
def _mark_visible(seen, volume, free, start, directions):
    step, next_, width = np.empty(3, np.int64), np.empty(3), np.empty(3)
    cell = np.empty(3, np.int64)
    for r in range(len(directions)):
        ray = directions[r]
        if not 0 < ray[0] * ray[0] + ray[1] * ray[1] + ray[2] * ray[2] < np.inf:
            continue
        t = _enter(start, ray, seen.shape, cell, step, next_, width)
        while t < np.inf:
            seen[cell[0], cell[1], cell[2]] = 1
            if volume[cell[0], cell[1], cell[2]] != free:
                break
            t = _advance(seen.shape, cell, step, next_, width)


@compiled_in_order
def _enter(start, ray, shape, cell, step, next_, width):
    """Set the walk to the first voxel of a ray; where it enters, infinite if it never does."""
    first, last = 0.0, np.inf
    for axis in range(3):
        if ray[axis] == 0:
            if not 0 <= start[axis] < shape[axis]:
                return np.inf
            continue
        a, b = -start[axis] / ray[axis], (shape[axis] - start[axis]) / ray[axis]
        first, last = max(first, min(a, b)), min(last, max(a, b))
    if not first < last:
        return np.inf
    for axis in range(3):
        # At the border that it enters by, rounding may put the ray on either side.
        at = int(np.floor(start[axis] + first * ray[axis]))
        cell[axis] = min(max(at, 0), shape[axis] - 1)
        step[axis], next_[axis], width[axis] = 0, np.inf, np.inf
        if ray[axis] > 0:
            step[axis], width[axis] = 1, 1 / ray[axis]
            next_[axis] = (cell[axis] + 1 - start[axis]) / ray[axis]
        elif ray[axis] < 0:
            step[axis], width[axis] = -1, -1 / ray[axis]
            next_[axis] = (cell[axis] - start[axis]) / ray[axis]
    return first


@compiled_in_order
def _advance(shape, cell, step, next_, width):
    """Move the walk to the next voxel; where that is entered, infinite outside the volume."""
    axis = 2
    if next_[0] <= next_[1] and next_[0] <= next_[2]:
        axis = 0
    elif next_[1] <= next_[2]:
        axis = 1
    t = next_[axis]
    cell[axis] += step[axis]
    next_[axis] += width[axis]
    return t if 0 <= cell[axis] < shape[axis] else np.inf
