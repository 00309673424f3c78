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
    seen: NDArray[np.uint8], origin: NDArray[np.float64], ends: NDArray[np.float64]
) -> None:
    """Set the voxels to 1 that rays from one origin cross, the one of their end included.

    Args:
        seen: (X, Y, Z), changed in place.
        origin: (3,) voxels; may lie outside.
        ends: (R, 3) voxels; may lie outside. A ray with an end that is not finite is left out.
    """
    _mark_crossed(seen, np.ascontiguousarray(origin, np.float64), np.ascontiguousarray(ends))


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
def _mark_crossed(seen, start, ends):
    nx, ny, nz = seen.shape
    for r in range(len(ends)):
        dx, dy, dz = ends[r, 0] - start[0], ends[r, 1] - start[1], ends[r, 2] - start[2]
        length = np.sqrt(dx * dx + dy * dy + dz * dz)
        if not 1e-9 < length < np.inf:
            continue
        # A little beyond the end: the surface that was hit lies on a voxel's border as a rule.
        limit = 1.0 + 0.05 / length
        i, step_i, next_i, width_i = _axis(start[0], dx)
        j, step_j, next_j, width_j = _axis(start[1], dy)
        k, step_k, next_k, width_k = _axis(start[2], dz)
        t = 0.0
        while t <= limit:
            if 0 <= i < nx and 0 <= j < ny and 0 <= k < nz:
                seen[i, j, k] = 1
            elif (
                _has_passed(i, step_i, nx) or _has_passed(j, step_j, ny)
                or _has_passed(k, step_k, nz)
            ):  # fmt: skip
                break
            t = min(next_i, next_j, next_k)
            if next_i == t:
                i += step_i
                next_i += width_i
            elif next_j == t:
                j += step_j
                next_j += width_j
            else:
                k += step_k
                next_k += width_k


@compiled_in_order
def _has_passed(cell, step, size):
    """Is it outside along this axis, and will not come back?"""
    return (cell < 0 and step <= 0) or (cell >= size and step >= 0)
